package hub

import (
	"mime"
	"slices"
	"strconv"
	"strings"
)

// The media types the hub can rewrite.
const (
	mediaJSON     = "application/json"
	mediaProtobuf = "application/vnd.kubernetes.protobuf"
)

// encoding is how objects of an answer look on the wire.
type encoding struct {
	protobuf bool
	// partial: as PartialObjectMetadata of meta.k8s.io/v1.
	partial bool
}

// accept is the one media type to ask the apiserver for; list says whether the
// answer is a list.
func (e encoding) accept(list bool) string {
	media := e.media()
	if e.partial {
		media += ";as=" + partialKind(list) + ";g=meta.k8s.io;v=v1"
	}
	return media
}

func (e encoding) media() string {
	if e.protobuf {
		return mediaProtobuf
	}
	return mediaJSON
}

// speaks says whether a Content-Type is of this encoding.
func (e encoding) speaks(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == e.media()
}

func partialKind(list bool) string {
	if list {
		return "PartialObjectMetadataList"
	}
	return "PartialObjectMetadata"
}

// negotiate chooses what the caller likes best of what the hub can rewrite.
// Tables are left out: kubectl then gets plain objects, which it lists by name
// and age. Without an Accept header it is JSON, as with an apiserver.
func negotiate(accept string, list bool) (encoding, bool) {
	if strings.TrimSpace(accept) == "" {
		return encoding{}, true
	}
	type choice struct {
		encoding encoding
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
		case mediaProtobuf:
			c.encoding.protobuf = true
		case mediaJSON, "application/*", "*/*":
		default:
			continue
		}
		switch as := params["as"]; {
		case as == "":
		case as == partialKind(list) && params["g"] == "meta.k8s.io" && params["v"] == "v1":
			c.encoding.partial = true
		default:
			continue
		}
		if q, ok := params["q"]; ok {
			if c.quality, err = strconv.ParseFloat(q, 64); err != nil || c.quality <= 0 {
				continue
			}
		}
		choices = append(choices, c)
	}
	if len(choices) == 0 {
		return encoding{}, false
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
