package replica

import (
	"errors"
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// Errors of reading. They are wrapped with what was read.
var (
	// ErrNotMirrored: the replica has no such collection (any more).
	ErrNotMirrored = errors.New("not mirrored")
	// ErrIncomplete: the collection was never whole on this node.
	ErrIncomplete = errors.New("not complete yet")
	// ErrExpired: the version asked for, or the place of a watch, is gone. The
	// client must begin anew.
	ErrExpired = errors.New("resource version too old")
	// ErrFuture: the collection has not come to the version asked for.
	ErrFuture = errors.New("resource version too large")
)

// OverlayBase is the version above which those of the overlay lie: out of reach
// of etcd's revisions, and an int64 still.
const OverlayBase Version = 1 << 62

// Version is a resourceVersion as apiservers of etcd make them. 0 is none.
type Version uint64

// ParseVersion reads a resourceVersion; "" is 0.
func ParseVersion(s string) (Version, error) {
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resourceVersion %q is not a number", s)
	}
	return Version(v), nil
}

func (v Version) String() string { return strconv.FormatUint(uint64(v), 10) }

// Overlay says that v was given by this node and not by the apiserver.
func (v Version) Overlay() bool { return v > OverlayBase }

// Collection names one stream of the apiserver. It is comparable; two that are
// equal are the same collection.
type Collection struct {
	Resource schema.GroupVersionResource
	// Namespace, or "" for all (and for what has none).
	Namespace string
	// Name of the only object (metadata.name), or "".
	Name string
	// Node that the objects name in spec.nodeName, or "".
	Node string
}

// String is for logs: "endpointslices.v1.discovery.k8s.io/default name=kubernetes".
func (c Collection) String() string {
	s := c.Resource.Resource + "." + c.Resource.Version
	if c.Resource.Group != "" {
		s += "." + c.Resource.Group
	}
	if c.Namespace != "" {
		s += "/" + c.Namespace
	}
	if c.Name != "" {
		s += " name=" + c.Name
	}
	if c.Node != "" {
		s += " node=" + c.Node
	}
	return s
}

// Query is what a read may see, as far as collections go: Name from the path or
// from a field selector that requires metadata.name, Node from one that requires
// spec.nodeName. All other selectors are the server's own.
type Query Collection

// Coverage is how much of a query a collection holds.
type Coverage int

const (
	// CoverNone: not mirrored. The request goes upstream, or is a 503.
	CoverNone Coverage = iota
	// CoverPart: an object that is found is right; one that is not found may
	// exist all the same. For a get by name of a collection narrowed by node.
	CoverPart
	// CoverWhole: what the collection does not hold does not exist.
	CoverWhole
)

// covers says how much of q the collection holds.
func (c Collection) covers(q Query) Coverage {
	switch {
	case c.Resource != q.Resource,
		c.Namespace != "" && c.Namespace != q.Namespace,
		c.Name != "" && c.Name != q.Name:
		return CoverNone
	case c.Node == "" || c.Node == q.Node:
		return CoverWhole
	case q.Name != "" && q.Node == "":
		return CoverPart
	}
	return CoverNone
}

// Object is one object as the apiserver sent it, less what is dropped at ingest.
// It is immutable, and shared by everybody.
type Object struct {
	Namespace, Name string
	UID             types.UID
	// Version in the object's metadata.
	Version Version
	// Media type of Raw: wire.MediaJSON or wire.MediaProtobuf.
	Media string
	// Raw is JSON, or protobuf in its envelope (runtime.Unknown with its prefix).
	Raw []byte
	// Message is the part of Raw that stands in a list: the bare message of a
	// protobuf envelope, all of JSON.
	Message []byte
}

// NewObject understands an object in full: JSON, or protobuf in its envelope. It
// keeps raw.
func NewObject(media string, raw []byte) (*Object, error) {
	message := raw
	if media == wire.MediaProtobuf {
		e, err := wire.ParseEnvelope(raw)
		if err != nil {
			return nil, err
		}
		message = e.Message
	}
	meta, err := wire.ReadMeta(media, message)
	if err != nil {
		return nil, err
	}
	if meta.Name == "" {
		return nil, errors.New("an object without a name")
	}
	version, err := ParseVersion(meta.ResourceVersion)
	if err != nil {
		return nil, fmt.Errorf("object %s/%s: %w", meta.Namespace, meta.Name, err)
	}
	return &Object{
		Namespace: meta.Namespace, Name: meta.Name, UID: types.UID(meta.UID), Version: version,
		Media: media, Raw: raw, Message: message,
	}, nil
}
