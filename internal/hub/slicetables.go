package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/table"
)

var sliceKind = discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice")

// sliceRows makes tables of slices that were rewritten whole and in JSON: a table of
// the apiserver's may lack what tells one slice from another. nil leaves them as
// they are.
type sliceRows struct {
	table.Printer
	// headed: the client of a watch knows the columns.
	headed bool
}

// rowsOf returns what makes a table of the answer, where that is asked for, and
// the encoding to rewrite slices in.
func (x *exchange) rowsOf(e codec.Encoding) (*sliceRows, codec.Encoding, error) {
	if !e.Table {
		return nil, e, nil
	}
	include, err := table.Include(x.req.query)
	if err != nil {
		return nil, e, err
	}
	return &sliceRows{Printer: table.Printer{Kind: sliceKind, Include: include, Clock: x.hub.clock}}, codec.Encoding{}, nil
}

// one makes the table of a slice.
func (r *sliceRows) one(body []byte) ([]byte, error) {
	if r == nil {
		return body, nil
	}
	var slice discoveryv1.EndpointSlice
	if err := json.Unmarshal(body, &slice); err != nil {
		return nil, fmt.Errorf("decode a slice: %w", err)
	}
	return r.tableOf(metav1.ListMeta{ResourceVersion: slice.ResourceVersion}, true, slice)
}

// list makes the table of a list.
func (r *sliceRows) list(body []byte) ([]byte, error) {
	if r == nil {
		return body, nil
	}
	var list discoveryv1.EndpointSliceList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("decode a list: %w", err)
	}
	return r.tableOf(list.ListMeta, true, list.Items...)
}

func (r *sliceRows) tableOf(list metav1.ListMeta, columns bool, slices ...discoveryv1.EndpointSlice) ([]byte, error) {
	rows := make([]metav1.TableRow, len(slices))
	for i := range slices {
		slices[i].SetGroupVersionKind(sliceKind)
		var err error
		if rows[i], err = r.Row(&slices[i]); err != nil {
			return nil, err
		}
	}
	return json.Marshal(r.Table(list, columns, rows...))
}

// events makes tables of the objects of whole watch events.
func (r *sliceRows) events(events []byte) ([]byte, error) {
	if r == nil {
		return events, nil
	}
	var out []byte
	frames := codec.NewWatchCodec(codec.Encoding{}, bytes.NewReader(events))
	for {
		frame, err := frames.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err == nil {
			frame, err = r.event(frames, frame)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, frame...)
	}
}

func (r *sliceRows) event(frames codec.WatchCodec, frame []byte) ([]byte, error) {
	var event metav1.WatchEvent
	if err := json.Unmarshal(frame, &event); err != nil {
		return nil, fmt.Errorf("decode a watch event: %w", err)
	}
	columns := !r.headed
	r.headed = true
	if event.Type == string(watch.Error) {
		return frame, nil // a Status
	}
	var slice discoveryv1.EndpointSlice
	if err := json.Unmarshal(event.Object.Raw, &slice); err != nil {
		return nil, fmt.Errorf("decode the object of a watch event: %w", err)
	}
	encoded, err := r.tableOf(metav1.ListMeta{ResourceVersion: slice.ResourceVersion}, columns, slice)
	if err != nil {
		return nil, err
	}
	return frames.Frame(event.Type, encoded)
}
