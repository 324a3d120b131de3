package engine

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// create makes an object with server-side apply, like every later change: what
// a plain create wrote would belong to another manager and could not be taken
// away by leaving it out. An object that exists is an AlreadyExists API error.
func (e *Engine) create(ctx context.Context, c *connection, obj client.Object) error {
	found := &metav1.PartialObjectMetadata{}
	found.SetGroupVersionKind(obj.GetObjectKind().GroupVersionKind())
	err := c.client.Get(ctx, client.ObjectKeyFromObject(obj), found)
	switch {
	case err == nil:
		kind := obj.GetObjectKind().GroupVersionKind()
		return apierrors.NewAlreadyExists(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, obj.GetName())
	case !apierrors.IsNotFound(err):
		return err
	}
	return e.apply(ctx, c, obj)
}

// unstructuredOf drops what server-side apply must not be sent: fields that
// only the API server fills in.
func unstructuredOf(raw map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: raw}
	for _, field := range []string{"creationTimestamp", "managedFields", "resourceVersion", "uid", "generation"} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	return u
}
