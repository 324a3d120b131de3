package serve

import (
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// The field selectors every resource has.
const (
	fieldName      = "metadata.name"
	fieldNamespace = "metadata.namespace"
	fieldNode      = "spec.nodeName"
)

// fieldPath is where a selectable field lies: in protobuf by numbers
// (k8s.io/api, generated.proto), in JSON by names.
type fieldPath struct {
	numbers []protowire.Number
	names   []string
	boolean bool
}

// selectable are the fields that resources can be selected by, beside name and
// namespace (kubernetes/pkg/apis/core/v1/conversion.go).
var selectable = map[schema.GroupResource]map[string]fieldPath{
	{Resource: "pods"}: {
		fieldNode:                  {numbers: []protowire.Number{2, 10}, names: []string{"spec", "nodeName"}},
		"spec.restartPolicy":       {numbers: []protowire.Number{2, 3}, names: []string{"spec", "restartPolicy"}},
		"spec.schedulerName":       {numbers: []protowire.Number{2, 19}, names: []string{"spec", "schedulerName"}},
		"spec.serviceAccountName":  {numbers: []protowire.Number{2, 8}, names: []string{"spec", "serviceAccountName"}},
		"spec.hostNetwork":         {numbers: []protowire.Number{2, 11}, names: []string{"spec", "hostNetwork"}, boolean: true},
		"status.phase":             {numbers: []protowire.Number{3, 1}, names: []string{"status", "phase"}},
		"status.nominatedNodeName": {numbers: []protowire.Number{3, 11}, names: []string{"status", "nominatedNodeName"}},
		"status.podIP":             {numbers: []protowire.Number{3, 6}, names: []string{"status", "podIP"}},
	},
	{Resource: "services"}: {
		"spec.clusterIP": {numbers: []protowire.Number{2, 3}, names: []string{"spec", "clusterIP"}},
		"spec.type":      {numbers: []protowire.Number{2, 4}, names: []string{"spec", "type"}},
	},
	{Resource: "nodes"}: {
		"spec.unschedulable": {numbers: []protowire.Number{2, 4}, names: []string{"spec", "unschedulable"}, boolean: true},
	},
	{Resource: "secrets"}: {
		"type": {numbers: []protowire.Number{3}, names: []string{"type"}},
	},
	{Resource: "namespaces"}: {
		"status.phase": {numbers: []protowire.Number{3, 1}, names: []string{"status", "phase"}},
	},
}

// selection is what a request's selectors leave of a collection.
type selection struct {
	namespace string
	labels    labels.Selector // nil where everything matches
	fields    fields.Selector // nil where everything matches
	paths     map[string]fieldPath
}

// newSelection says false where a field is not one the hub knows.
func newSelection(resource schema.GroupResource, namespace string, l labels.Selector, f fields.Selector) (*selection, bool) {
	s := &selection{namespace: namespace, paths: selectable[resource]}
	if l != nil && !l.Empty() {
		s.labels = l
	}
	if f != nil && !f.Empty() {
		s.fields = f
		for _, r := range f.Requirements() {
			if _, ok := s.paths[r.Field]; !ok && r.Field != fieldName && r.Field != fieldNamespace {
				return nil, false
			}
		}
	}
	return s, true
}

// narrows says whether the request has selectors of its own.
func (s *selection) narrows() bool { return s.labels != nil || s.fields != nil }

// matches decodes no more of an object than the selectors ask about.
func (s *selection) matches(o *replica.Object) (bool, error) {
	if o == nil || s.namespace != "" && o.Namespace != s.namespace {
		return false, nil
	}
	if s.labels != nil {
		meta, err := metaOf(o)
		if err != nil {
			return false, err
		}
		if !s.labels.Matches(labels.Set(meta.Labels)) {
			return false, nil
		}
	}
	if s.fields == nil {
		return true, nil
	}
	set := fields.Set{}
	for _, r := range s.fields.Requirements() {
		value, err := s.field(o, r.Field)
		if err != nil {
			return false, err
		}
		set[r.Field] = value
	}
	return s.fields.Matches(set), nil
}

// pick returns the objects that match, all of them without copying.
func (s *selection) pick(objects []*replica.Object) ([]*replica.Object, error) {
	if s.namespace == "" && !s.narrows() {
		return objects, nil
	}
	var picked []*replica.Object
	for _, o := range objects {
		ok, err := s.matches(o)
		if err != nil {
			return nil, err
		}
		if ok {
			picked = append(picked, o)
		}
	}
	return slices.Clip(picked), nil
}

func (s *selection) field(o *replica.Object, field string) (string, error) {
	switch field {
	case fieldName:
		return o.Name, nil
	case fieldNamespace:
		return o.Namespace, nil
	}
	path := s.paths[field]
	var value string
	var err error
	if o.Media == wire.MediaProtobuf {
		value, err = codec.At(o.Message, path.boolean, path.numbers...)
	} else {
		value, err = jsonAt(o.Raw, path)
	}
	if err != nil {
		return "", fmt.Errorf("read %s of %s/%s: %w", field, o.Namespace, o.Name, err)
	}
	return value, nil
}

func jsonAt(object []byte, path fieldPath) (string, error) {
	raw := json.RawMessage(object)
	for _, name := range path.names {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(raw, &fields); err != nil {
			return "", err
		}
		var ok bool
		if raw, ok = fields[name]; !ok || string(raw) == "null" {
			if path.boolean {
				return "false", nil
			}
			return "", nil
		}
	}
	if path.boolean {
		return string(raw), nil
	}
	var value string
	err := json.Unmarshal(raw, &value)
	return value, err
}

func metaOf(o *replica.Object) (wire.Meta, error) { return wire.ReadMeta(o.Media, o.Message) }
