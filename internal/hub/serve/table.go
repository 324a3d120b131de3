package serve

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// row returns an object as it stands in a table's list.
func (e encoder) row(o *replica.Object) ([]byte, error) {
	object, err := e.object(o)
	if err != nil {
		return nil, err
	}
	row, err := e.printer.Row(object)
	if err != nil {
		return nil, err
	}
	return json.Marshal(row)
}

// tableOf returns the table of one object.
func (e encoder) tableOf(o *replica.Object) ([]byte, error) {
	object, err := e.object(o)
	if err != nil {
		return nil, err
	}
	return e.tableAround(object)
}

func (e encoder) tableAround(object runtime.Object) ([]byte, error) {
	m, err := meta.Accessor(object)
	if err != nil {
		return nil, err
	}
	row, err := e.printer.Row(object)
	if err != nil {
		return nil, err
	}
	return json.Marshal(e.printer.Table(metav1.ListMeta{ResourceVersion: m.GetResourceVersion()}, !e.headed, row))
}

// bookmarkTable returns the table that an apiserver makes of a bookmark: that of an
// object which has nothing but this metadata.
func (e encoder) bookmarkTable(m metav1.ObjectMeta) ([]byte, error) {
	object, err := e.empty()
	if err != nil {
		return nil, err
	}
	to, err := meta.Accessor(object)
	if err != nil {
		return nil, err
	}
	object.GetObjectKind().SetGroupVersionKind(e.kind)
	to.SetResourceVersion(m.ResourceVersion)
	to.SetAnnotations(m.Annotations)
	return e.tableAround(object)
}

// object decodes an object as rows are made of it.
func (e encoder) object(o *replica.Object) (runtime.Object, error) {
	if scheme.Scheme.Recognizes(e.kind) {
		return decode(o)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(o.Raw); err != nil {
		return nil, fmt.Errorf("decode %s/%s: %w", o.Namespace, o.Name, err)
	}
	return u, nil
}

func (e encoder) empty() (runtime.Object, error) {
	if scheme.Scheme.Recognizes(e.kind) {
		return scheme.Scheme.New(e.kind)
	}
	return &unstructured.Unstructured{Object: map[string]any{}}, nil
}
