package codec

// Field numbers of the messages the hub looks into (generated.proto of
// apimachinery; every List of the API is {metadata = 1, repeated items = 2} and
// every object has its ObjectMeta at 1).
const (
	FieldListMetadata        = 1
	FieldListItems           = 2
	FieldListResourceVersion = 2 // in ListMeta

	fieldUnknownType        = 1 // of the envelope
	fieldUnknownRaw         = 2
	fieldUnknownEncoding    = 3
	fieldUnknownContentType = 4

	fieldObjectMetadata = 1
)
