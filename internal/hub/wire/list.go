package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// List is a page of a list, opened.
type List struct {
	APIVersion, Kind string // of the list
	ResourceVersion  string
	Continue         string
	// Items are parts of what was parsed: messages (see ReadMeta), or objects in
	// JSON that may lack apiVersion and kind.
	Items [][]byte
}

// ParseList opens a list. Anything that is no list is an error.
func ParseList(media string, body []byte) (List, error) {
	var (
		list List
		err  error
	)
	switch media {
	case MediaJSON:
		list, err = parseJSONList(body)
	case MediaProtobuf:
		list, err = parseProtobufList(body)
	default:
		return List{}, unknownMedia(media)
	}
	if err == nil && !strings.HasSuffix(list.Kind, "List") {
		err = fmt.Errorf("it is a %q", list.Kind)
	}
	if err == nil && list.ResourceVersion == "" {
		err = errors.New("it has no resourceVersion")
	}
	if err != nil {
		return List{}, fmt.Errorf("decode a list: %w", err)
	}
	return list, nil
}

func parseJSONList(body []byte) (List, error) {
	var l struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			ResourceVersion string `json:"resourceVersion"`
			Continue        string `json:"continue"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(body, &l); err != nil {
		return List{}, err
	}
	list := List{APIVersion: l.APIVersion, Kind: l.Kind, ResourceVersion: l.Metadata.ResourceVersion, Continue: l.Metadata.Continue}
	for _, item := range l.Items {
		list.Items = append(list.Items, item)
	}
	return list, nil
}

func parseProtobufList(body []byte) (List, error) {
	e, err := ParseEnvelope(body)
	if err != nil {
		return List{}, err
	}
	list := List{APIVersion: e.APIVersion, Kind: e.Kind}
	err = EachField(e.Message, func(f Field) error {
		switch {
		case f.Number == fieldListMeta:
			return EachField(f.Bytes, func(f Field) error {
				switch f.Number {
				case fieldListResourceVersion:
					list.ResourceVersion = string(f.Bytes)
				case fieldListContinue:
					list.Continue = string(f.Bytes)
				}
				return nil
			})
		case f.Number == fieldListItems && f.Bytes != nil:
			list.Items = append(list.Items, f.Bytes)
		}
		return nil
	})
	return list, err
}
