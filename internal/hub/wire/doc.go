// Package wire reads and writes what Kubernetes' API sends: objects, lists and
// watch streams, in JSON and in protobuf, without knowing their types. It looks
// into metadata only and leaves all else as it is, byte for byte.
//
//	object     JSON, or  "k8s\x00" Unknown{ TypeMeta = 1, message = 2, … }
//	message    { ObjectMeta = 1, … }                     every object of the API
//	list       { ListMeta = 1, repeated message = 2 }    every list of the API
//	watch      JSON: {"type": …, "object": object} lines
//	           protobuf: uint32 length, WatchEvent{ type = 1, RawExtension{ object = 1 } = 2 }
//
// What comes from outside is bounded and never trusted: a broken message is an
// error, and no length in it makes memory.
package wire
