//go:build linux

package main

import (
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestParseContainer(t *testing.T) {
	text := func(b []byte, field protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), value)
	}
	number := func(b []byte, field protowire.Number, value uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), value)
	}
	message := text(nil, fieldID, "0123")
	message = text(message, fieldContainerMeta, string(number(text(nil, fieldMetaName, "web"), 2, 3)))
	message = number(number(message, fieldState, stateRunning), fieldCreatedAt, uint64(time.Second))
	message = protowire.AppendFixed32(protowire.AppendTag(message, 99, protowire.Fixed32Type), 7)
	got, err := parseContainer(message)
	if err != nil {
		t.Fatal(err)
	}
	if want := (container{id: "0123", name: "web", running: true, created: time.Unix(1, 0)}); got != want {
		t.Errorf("%+v", got)
	}
	if _, err := parseContainer(message[:len(message)-1]); err == nil {
		t.Error("a message that was cut short is one")
	}
}
