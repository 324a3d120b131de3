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
	// Table: as Table of meta.k8s.io/v1, which has no protobuf form.
	Table bool
}

// Accept is the one media type to ask the apiserver for; list says whether the
// answer is a list.
func (e Encoding) Accept(list bool) string {
	switch {
	case e.Partial:
		return e.Media() + ";as=" + PartialKind(list) + ";g=meta.k8s.io;v=v1"
	case e.Table:
		return e.Media() + ";as=Table;g=meta.k8s.io;v=v1"
	}
	return e.Media()
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

// Offer is what an answer can be beside JSON, whole or metadata alone.
type Offer struct {
	// List: the answer is a list.
	List bool
	// Protobuf: objects have that form, as those of CustomResourceDefinitions have
	// not. Metadata alone always has.
	Protobuf bool
	// Table: rows can be made of them.
	Table bool
}

// Negotiate chooses what the caller likes best of all that the hub can make of
// Kubernetes' own objects. Without an Accept header it is JSON, as with an apiserver.
func Negotiate(accept string, list bool) (Encoding, bool) {
	return NegotiateOf(accept, Offer{List: list, Protobuf: true, Table: true})
}

// NegotiateOf is Negotiate of an offer. Of the versions of meta.k8s.io only v1 is
// offered: nobody has asked for v1beta1 alone since Kubernetes 1.15.
func NegotiateOf(accept string, o Offer) (Encoding, bool) {
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
		case params["g"] != "meta.k8s.io" || params["v"] != "v1":
			continue
		case as == PartialKind(o.List):
			c.encoding.Partial = true
		case as == "Table" && o.Table && !c.encoding.Protobuf:
			c.encoding.Table = true
		default:
			continue
		}
		if q, ok := params["q"]; ok {
			if c.quality, err = strconv.ParseFloat(q, 64); err != nil || c.quality <= 0 {
				continue
			}
		}
		if c.encoding.Protobuf && !c.encoding.Partial && !o.Protobuf {
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
