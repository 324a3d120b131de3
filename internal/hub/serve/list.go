package serve

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/table"
)

// writeBuffer is how much of a list is written at once.
const writeBuffer = 32 << 10

func (c *call) get() bool {
	if err := c.ready(c.options.version); err != nil {
		return c.refuse(err)
	}
	snapshot, err := c.server.replica.Snapshot(c.collection)
	if err != nil {
		return c.refuse(err)
	}
	object, _, err := c.server.replica.Get(c.collection, c.request.Namespace, c.request.Name)
	switch {
	case err != nil:
		return c.refuse(err)
	case object == nil && c.coverage != replica.CoverWhole:
		return false
	case object == nil:
		codec.WriteStatus(c.w, apierrors.NewNotFound(c.request.Resource.GroupResource(), c.request.Name).ErrStatus)
		return true
	}
	e, ok := c.negotiate(snapshot.Kind)
	if !ok {
		return true
	}
	body, err := e.whole(object)
	if err != nil {
		c.fail(err, false)
		return true
	}
	c.header(e.Media(), len(body))
	if _, err := c.w.Write(body); err != nil {
		panic(http.ErrAbortHandler)
	}
	return true
}

func (c *call) list() bool {
	var from token
	if c.options.Continue != "" {
		var err error
		if from, err = parseToken(c.options.Continue); err != nil {
			if !c.stale {
				return false // an apiserver's
			}
			codec.WriteStatus(c.w, apierrors.NewResourceExpired("the list was begun with the apiserver, which cannot be reached: begin it anew").ErrStatus)
			return true
		}
		if from.Collection != c.collection.String() {
			codec.WriteStatus(c.w, *bad("the continue token is of another list"))
			return true
		}
	}
	snapshot, err := c.snapshot(from)
	if errors.Is(err, errNotExact) && !c.stale {
		return false
	}
	if err != nil {
		return c.refuse(err)
	}
	e, ok := c.negotiate(snapshot.Kind)
	if !ok {
		return true
	}
	objects, err := c.selection.pick(snapshot.Objects)
	if err != nil {
		c.fail(err, false)
		return true
	}
	if from.Format != "" {
		objects = from.after(objects)
	}
	meta := metav1.ListMeta{ResourceVersion: snapshot.Version.String()}
	if page := c.options.page(); page > 0 && len(objects) > page {
		if !c.selection.narrows() {
			meta.RemainingItemCount = ptr.To(int64(len(objects) - page))
		}
		objects = objects[:page]
		last := objects[page-1]
		meta.Continue = token{Version: snapshot.Version, Collection: c.collection.String(), Namespace: last.Namespace, Name: last.Name}.String()
		c.server.held.keep(snapshot)
	}
	if e.Protobuf {
		c.writeProtobufList(e, meta, objects)
	} else {
		c.writeJSONList(e, meta, objects)
	}
	return true
}

// errNotExact: the replica is not, or no more, at the very version asked for.
var errNotExact = errors.New("the node does not hold this version")

// snapshot finds the state a list shows.
func (c *call) snapshot(from token) (*replica.Snapshot, error) {
	if from.Format != "" {
		if s := c.server.held.find(c.collection, from.Version); s != nil {
			return s, nil
		}
		return nil, errors.Join(replica.ErrExpired, errors.New("the list's pages are no longer held: begin it anew"))
	}
	if err := c.ready(c.options.version); err != nil {
		return nil, err
	}
	if c.options.exact() {
		return c.snapshotAt(c.options.version)
	}
	return c.server.replica.Snapshot(c.collection)
}

// snapshotAt returns the state at one version: a held one, or the present one if
// nothing has changed since.
func (c *call) snapshotAt(version replica.Version) (*replica.Snapshot, error) {
	if s := c.server.held.find(c.collection, version); s != nil {
		return s, nil
	}
	s, err := c.server.replica.Snapshot(c.collection)
	if err != nil || s.Version == version {
		return s, err
	}
	// Taken after the snapshot: if nothing came since version, nothing of it is
	// in the snapshot.
	watch, err := c.server.replica.Watch(c.collection, version)
	if err == nil {
		var events []*replica.Event
		if events, err = watch.Take(1); err == nil && len(events) == 0 {
			same := *s
			same.Version = version
			return &same, nil
		}
	}
	return nil, errors.Join(errNotExact, replica.ErrExpired, err)
}

// header begins an answer; length < 0 where it is not known.
func (c *call) header(contentType string, length int) {
	h := c.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-cache, private")
	if length >= 0 {
		h.Set("Content-Length", strconv.Itoa(length))
	}
	c.w.WriteHeader(http.StatusOK)
}

// listKind is the kind of the list an encoder's objects are in.
func (e encoder) listKind() (apiVersion, kind string) {
	if e.Table {
		return table.Kind.ToAPIVersionAndKind()
	}
	return e.shown().GroupVersion().WithKind(e.shown().Kind + "List").ToAPIVersionAndKind()
}

// writeProtobufList concatenates the objects as they are stored.
func (c *call) writeProtobufList(e encoder, meta metav1.ListMeta, objects []*replica.Object) {
	items := make([][]byte, len(objects))
	encodedMeta, err := meta.Marshal()
	if err != nil {
		c.fail(err, false)
		return
	}
	size := codec.SizeBytesField(codec.FieldListMetadata, len(encodedMeta))
	for i, o := range objects {
		if items[i], err = e.message(o); err != nil {
			c.fail(err, false)
			return
		}
		size += codec.SizeBytesField(codec.FieldListItems, len(items[i]))
	}
	apiVersion, kind := e.listKind()
	head, tail, err := codec.EnvelopeAround(runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, size)
	if err != nil {
		c.fail(err, false)
		return
	}
	c.header(e.Media(), len(head)+size+len(tail))
	w := bufio.NewWriterSize(c.w, writeBuffer)
	piece := append(head, codec.AppendBytesField(nil, codec.FieldListMetadata, encodedMeta)...)
	_, _ = w.Write(piece) // the writer keeps its first error for Flush
	for _, item := range items {
		piece = codec.AppendBytesHeader(piece[:0], codec.FieldListItems, len(item))
		_, _ = w.Write(piece)
		_, _ = w.Write(item)
	}
	_, _ = w.Write(tail)
	if err := w.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// writeJSONList encodes one object after the other, as items or as rows.
func (c *call) writeJSONList(e encoder, meta metav1.ListMeta, objects []*replica.Object) {
	head, err := e.jsonHead(meta)
	if err != nil {
		c.fail(err, false)
		return
	}
	c.header(e.Media(), -1)
	w := bufio.NewWriterSize(c.w, writeBuffer)
	_, _ = w.Write(head) // the writer keeps its first error for Flush
	for i, o := range objects {
		item, err := e.item(o)
		if err != nil {
			c.fail(err, true)
		}
		if i > 0 {
			_ = w.WriteByte(',')
		}
		_, _ = w.Write(item)
	}
	_, _ = w.WriteString("]}\n")
	if err := w.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// jsonHead is a list in JSON up to its first item.
func (e encoder) jsonHead(meta metav1.ListMeta) ([]byte, error) {
	apiVersion, kind := e.listKind()
	head, err := json.Marshal(metav1.TypeMeta{Kind: kind, APIVersion: apiVersion})
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	head = append(append(head[:len(head)-1], `,"metadata":`...), encoded...)
	if !e.Table {
		return append(head, `,"items":[`...), nil
	}
	if encoded, err = json.Marshal(e.printer.Columns()); err != nil {
		return nil, err
	}
	head = append(append(head, `,"columnDefinitions":`...), encoded...)
	return append(head, `,"rows":[`...), nil
}
