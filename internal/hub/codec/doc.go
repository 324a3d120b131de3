// Package codec knows how the API's objects look as bytes: media types, the
// protobuf envelope, lists, watch frames, and an object's metadata read without
// decoding the rest. It decides nothing and keeps nothing.
//
// A protobuf object on the wire (k8s.io/apimachinery, runtime/generated.proto):
//
//	"k8s\x00" Unknown{ typeMeta = 1, raw = 2 }     raw: the message, ObjectMeta at 1
//	list:     Unknown{ raw = { ListMeta = 1, repeated items = 2 } }
//	watch:    uint32 length, WatchEvent{ type = 1, object = 2{ raw = 1: an envelope } }
package codec
