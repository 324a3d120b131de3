package memo

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// disk is a Backend that reads everything back as a store does.
type disk struct {
	t       *testing.T
	objects map[replica.Collection]map[string]*replica.Object
}

func (d *disk) Keep(c replica.Collection, put, remove []*replica.Object) {
	d.t.Helper()
	if !Owns(c) {
		d.t.Errorf("wrote %s", c)
	}
	if d.objects[c] == nil {
		d.objects[c] = map[string]*replica.Object{}
	}
	for _, o := range put {
		back, err := replica.NewObject(o.Media, o.Raw)
		if err != nil {
			d.t.Fatal(err)
		}
		d.objects[c][back.Name] = back
	}
	for _, o := range remove {
		delete(d.objects[c], o.Name)
	}
}

func (d *disk) found() map[replica.Collection][]*replica.Object {
	out := map[replica.Collection][]*replica.Object{}
	for c, objects := range d.objects {
		out[c] = slices.Collect(maps.Values(objects))
	}
	return out
}

func TestMemo(t *testing.T) {
	d := &disk{t: t, objects: map[replica.Collection]map[string]*replica.Object{}}
	few, many := Bucket{"few", 3}, Bucket{"many", 100}
	m := New(d, nil, nil)
	for i := range 5 {
		m.Put(few, fmt.Sprintf("/apis/x?y=%d#é", i), []byte{byte(i)})
		m.Put(many, fmt.Sprint(i), []byte("v"))
	}
	m.Put(few, "/apis/x?y=2#é", []byte("again"))
	m.Put(few, "last", nil)
	m.Delete(many, "3", "none")
	for _, m := range []*Memo{m, New(d, d.found(), nil)} {
		var keys []string
		for _, e := range m.All(few) {
			keys = append(keys, e.Key)
		}
		if d := cmp.Diff([]string{"/apis/x?y=4#é", "/apis/x?y=2#é", "last"}, keys); d != "" {
			t.Error(d)
		}
		if v, ok := m.Get(few, "/apis/x?y=2#é"); !ok || string(v) != "again" {
			t.Errorf("got %q, %v", v, ok)
		}
		if _, ok := m.Get(few, "/apis/x?y=3#é"); ok {
			t.Error("the oldest is still there")
		}
		if n := len(m.All(many)); n != 4 {
			t.Errorf("%d of many", n)
		}
	}
	again := New(d, d.found(), nil)
	again.Put(few, "newer", nil)
	if all := again.All(few); all[2].Key != "newer" {
		t.Errorf("the order is lost over a restart: %v", all)
	}
}
