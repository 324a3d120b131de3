package codec

import (
	"mime"
	"slices"
	"strconv"
	"strings"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// Encoding is how objects of an answer look on the wire.
type Encoding struct {
	Protobuf bool
	// Partial: as PartialObjectMetadata of meta.k8s.io/v1.
	Partial bool
}

// Accept is the one media type to ask the apiserver for; list says whether the
// answer is a list.
func (e Encoding) Accept(list bool) string {
	media := e.Media()
	if e.Partial {
		media += ";as=" + PartialKind(list) + ";g=meta.k8s.io;v=v1"
	}
	return media
}

// Media is the media type.
func (e Encoding) Media() string {
	if e.Protobuf {
		return wire.MediaProtobuf
	}
	return wire.MediaJSON
}

// Speaks says whether a Content-Type is of this encoding.
func (e Encoding) Speaks(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == e.Media()
}

// PartialKind is the kind of metadata alone.
func PartialKind(list bool) string {
	if list {
		return "PartialObjectMetadataList"
	}
	return "PartialObjectMetadata"
}

// Negotiate chooses what the caller likes best of what the hub can rewrite.
// Tables are left out: kubectl then gets plain objects, which it lists by name
// and age. Without an Accept header it is JSON, as with an apiserver.
func Negotiate(accept string, list bool) (Encoding, bool) { return NegotiateOf(accept, list, true) }

// NegotiateOf is Negotiate where the objects have no protobuf form (those of
// CustomResourceDefinitions) unless protobuf says so. Metadata alone always has.
func NegotiateOf(accept string, list, protobuf bool) (Encoding, bool) {
	if strings.TrimSpace(accept) == "" {
		return Encoding{}, true
	}
	type choice struct {
		encoding Encoding
		quality  float64
	}
	var choices []choice
	for part := range strings.SplitSeq(accept, ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		c := choice{quality: 1}
		switch media {
		case wire.MediaProtobuf:
			c.encoding.Protobuf = true
		case wire.MediaJSON, "application/*", "*/*":
		default:
			continue
		}
		switch as := params["as"]; {
		case as == "":
		case as == PartialKind(list) && params["g"] == "meta.k8s.io" && params["v"] == "v1":
			c.encoding.Partial = true
		default:
			continue
		}
		if q, ok := params["q"]; ok {
			if c.quality, err = strconv.ParseFloat(q, 64); err != nil || c.quality <= 0 {
				continue
			}
		}
		if c.encoding.Protobuf && !c.encoding.Partial && !protobuf {
			continue
		}
		choices = append(choices, c)
	}
	if len(choices) == 0 {
		return Encoding{}, false
	}
	best := slices.MaxFunc(choices, func(a, b choice) int {
		switch {
		case a.quality > b.quality:
			return 1
		case a.quality < b.quality:
			return -1
		}
		return 0
	})
	return best.encoding, true
}
