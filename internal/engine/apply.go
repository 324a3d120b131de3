package engine

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

// unstructuredOf drops what server-side apply must not be sent: fields that
// only the API server fills in.
func unstructuredOf(raw map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: raw}
	for _, field := range []string{"creationTimestamp", "managedFields", "resourceVersion", "uid", "generation"} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	return u
}
