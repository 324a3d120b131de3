package controllers

import (
	"context"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// apply makes the object as given by server-side apply: fields of others stay,
// fields an earlier apply set and this one does not go. object must carry its
// apiVersion and kind. It returns the object as it then is.
func apply(ctx context.Context, c client.Client, object client.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", object.GetName(), err)
	}
	u := &unstructured.Unstructured{Object: content}
	// Fields that Go's zero values leave behind, and that must not be owned.
	unstructured.RemoveNestedField(u.Object, "status")
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(u.Object, "spec", "template", "metadata", "creationTimestamp")
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), fieldManager, client.ForceOwnership); err != nil {
		return nil, err
	}
	return u, nil
}

// ownerOf is a reference to the object that made another one.
func ownerOf(object client.Object, kind string) metav1.OwnerReference {
	return metav1.OwnerReference{
		APIVersion: v1alpha1.GroupVersion.String(),
		Kind:       kind,
		Name:       object.GetName(),
		UID:        object.GetUID(),
		Controller: ptr.To(true),
	}
}

// madeBy says whether owner is the controller of object.
func madeBy(object, owner client.Object) bool {
	reference := metav1.GetControllerOf(object)
	return reference != nil && reference.UID == owner.GetUID()
}

// madeByNamesake says whether the controller of object was an earlier object of
// owner's kind and name, one that has been deleted since: names are unique, so
// that two with different uids never live at once.
func madeByNamesake(object, owner client.Object) bool {
	reference := metav1.GetControllerOf(object)
	return reference != nil && reference.Kind == "UnitDeployment" && reference.Name == owner.GetName() &&
		strings.HasPrefix(reference.APIVersion, v1alpha1.GroupVersion.Group+"/") && reference.UID != owner.GetUID()
}

func validObjectName(name string) bool {
	return len(validation.IsDNS1123Subdomain(name)) == 0 && !strings.Contains(name, "..")
}
