package mirror

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// errNoDifference: what changed cannot be told as events. Whoever watches must
// begin anew.
var errNoDifference = errors.New("the change cannot be told as events")

// content is a collection of one moment, as the diff takes it.
type content struct {
	objects map[objectKey]*replica.Object
	version replica.Version
}

type objectKey struct{ namespace, name string }

func keyOf(o *replica.Object) objectKey { return objectKey{o.Namespace, o.Name} }

// diff tells how old became new, as events whose versions strictly increase from
// above old's version to new's. It also puts into new what stays as it was, and
// the versions it gives.
//
// Objects that are new or changed keep their own versions, which lie above old's:
// the apiserver gave them since. Those of version 0 are the node's own and get a
// free one if they changed. So do deletions, the earliest free ones first: in
// truth each took one between the two too, so there are enough, and an object that
// was deleted and made again has one before its second life. Where that does not
// come out, history is not what it was (etcd was restored), and the result is
// errNoDifference.
func (r *rule) diff(old, new content) ([]*replica.Event, error) {
	d := &differ{rule: r, old: old, new: new, taken: map[replica.Version]bool{}}
	if new.version < old.version {
		return nil, fmt.Errorf("version %s follows %s: %w", new.version, old.version, errNoDifference)
	}
	for k, was := range old.objects {
		is := new.objects[k]
		if is == nil {
			d.gone = append(d.gone, departure{was, new.version + 1})
			continue
		}
		if err := d.compare(k, was, is); err != nil {
			return nil, err
		}
	}
	for k, is := range new.objects {
		if old.objects[k] == nil {
			if err := d.arrive(watch.Added, is, nil); err != nil {
				return nil, err
			}
		}
	}
	if err := d.placeUnnumbered(); err != nil {
		return nil, err
	}
	slices.SortFunc(d.events, func(a, b *replica.Event) int { return cmp.Compare(a.Version(), b.Version()) })
	return d.events, nil
}

// departure is a deletion that needs a version before a deadline.
type departure struct {
	object *replica.Object
	before replica.Version
}

type differ struct {
	rule     *rule
	old, new content
	events   []*replica.Event
	taken    map[replica.Version]bool
	gone     []departure
	// local are the node's own objects that need a version.
	local []*replica.Event
}

// compare tells what became of an object that is there before and after.
func (d *differ) compare(k objectKey, was, is *replica.Object) error {
	if is.Version == 0 {
		renumbered, err := d.rule.at(is, was.Version)
		if err != nil {
			return err
		}
		if bytes.Equal(renumbered.Raw, was.Raw) {
			d.new.objects[k] = was
			return nil
		}
		return d.arrive(watch.Modified, is, was)
	}
	switch {
	case is.UID != was.UID:
		d.gone = append(d.gone, departure{was, is.Version})
		return d.arrive(watch.Added, is, nil)
	case is.Version == was.Version && bytes.Equal(is.Raw, was.Raw), d.rule.unchanged(was, is):
		d.new.objects[k] = was
		return nil
	}
	return d.arrive(watch.Modified, is, was)
}

// arrive adds an event at the object's own version.
func (d *differ) arrive(kind watch.EventType, is, was *replica.Object) error {
	e := &replica.Event{Type: kind, Object: is, Previous: was}
	if is.Version == 0 {
		d.local = append(d.local, e)
		return nil
	}
	if is.Version <= d.old.version || is.Version > d.new.version || d.taken[is.Version] {
		return fmt.Errorf("%s/%s of version %s appeared between %s and %s: %w",
			is.Namespace, is.Name, is.Version, d.old.version, d.new.version, errNoDifference)
	}
	d.taken[is.Version] = true
	d.events = append(d.events, e)
	return nil
}

// placeUnnumbered gives versions to deletions and to the node's own objects.
func (d *differ) placeUnnumbered() error {
	// Those with the earliest deadline first; the order of the others is by name,
	// so that a difference is the same each time it is made.
	slices.SortFunc(d.gone, func(a, b departure) int {
		return cmp.Or(cmp.Compare(a.before, b.before), replica.Compare(a.object, b.object))
	})
	slices.SortFunc(d.local, func(a, b *replica.Event) int { return replica.Compare(a.Object, b.Object) })
	next := d.old.version
	free := func(before replica.Version) (replica.Version, error) {
		for next++; d.taken[next]; next++ {
		}
		if next >= before {
			return 0, fmt.Errorf("no version is free before %s: %w", before, errNoDifference)
		}
		return next, nil
	}
	for _, g := range d.gone {
		v, err := free(g.before)
		if err != nil {
			return err
		}
		o, err := d.rule.at(g.object, v)
		if err != nil {
			return err
		}
		d.events = append(d.events, &replica.Event{Type: watch.Deleted, Object: o, Previous: g.object})
	}
	for _, e := range d.local {
		v, err := free(d.new.version + 1)
		if err != nil {
			return err
		}
		if e.Object, err = d.rule.at(e.Object, v); err != nil {
			return err
		}
		d.new.objects[keyOf(e.Object)] = e.Object
		d.events = append(d.events, e)
	}
	return nil
}

// number gives the node's own objects the version of the whole, in a content that
// follows no other.
func (r *rule) number(c content) error {
	for k, o := range c.objects {
		if o.Version != 0 {
			continue
		}
		numbered, err := r.at(o, c.version)
		if err != nil {
			return err
		}
		c.objects[k] = numbered
	}
	return nil
}
