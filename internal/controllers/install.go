package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// installManager is the field manager of the manifests.
const installManager = "edge-install"

// How long Install waits between tries. It is called while the apiserver is
// still starting, so it begins quickly; the bound keeps a dead apiserver from
// being asked more than twice a second.
const (
	installRetryFirst = 25 * time.Millisecond
	installRetryMax   = 500 * time.Millisecond
)

// kindResource is where objects of a kind in the manifests are served. It is
// written down so that Install need not wait for discovery.
var kindResource = map[schema.GroupKind]schema.GroupVersionResource{
	{Kind: "Namespace"}: {Version: "v1", Resource: "namespaces"},
	{Kind: "ConfigMap"}: {Version: "v1", Resource: "configmaps"},
	{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}:                 {Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRole"}:                         {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRoleBinding"}:                  {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	{Group: "rbac.authorization.k8s.io", Kind: "Role"}:                                {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	{Group: "rbac.authorization.k8s.io", Kind: "RoleBinding"}:                         {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	{Group: "admissionregistration.k8s.io", Kind: "ValidatingAdmissionPolicy"}:        {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicies"},
	{Group: "admissionregistration.k8s.io", Kind: "MutatingAdmissionPolicy"}:          {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingadmissionpolicies"},
	{Group: "admissionregistration.k8s.io", Kind: "MutatingAdmissionPolicyBinding"}:   {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingadmissionpolicybindings"},
	{Group: "admissionregistration.k8s.io", Kind: "ValidatingAdmissionPolicyBinding"}: {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"},
}

// Install applies the manifests as the identity in restConfig (a cluster
// administrator) and returns when the custom resources can be used. It may be
// called as soon as the apiserver listens, and again at any time: it retries
// until the apiserver serves, and changes nothing that is already as it should
// be. It ends with the context, or at once when the apiserver says that a
// manifest is wrong.
func Install(ctx context.Context, restConfig *rest.Config, logger *slog.Logger) error {
	objects, err := Manifests()
	if err != nil {
		return err
	}
	config := rest.CopyConfig(restConfig)
	// Every object is one request and all are sent at once; the client's own
	// rate limit would only make the start slower.
	config.QPS = -1
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("install manifests: make client: %w", err)
	}
	started := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, object := range objects {
		group.Go(func() error { return installObject(ctx, dynamicClient, object) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("install manifests: %w", err)
	}
	logger.Info("manifests installed", "objects", len(objects), "took", time.Since(started))
	return nil
}

func installObject(ctx context.Context, dynamicClient dynamic.Interface, object client.Object) error {
	gvk := object.GetObjectKind().GroupVersionKind()
	name := gvk.Kind + " " + object.GetName()
	resource, ok := kindResource[gvk.GroupKind()]
	if !ok {
		return fmt.Errorf("apply %s: no resource is known for this kind", name)
	}
	body, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("apply %s: encode: %w", name, err)
	}
	var target dynamic.ResourceInterface = dynamicClient.Resource(resource)
	if object.GetNamespace() != "" {
		target = dynamicClient.Resource(resource).Namespace(object.GetNamespace())
	}
	var applied *unstructured.Unstructured
	err = untilAccepted(ctx, func() (err error) {
		applied, err = target.Patch(ctx, object.GetName(), types.ApplyPatchType, body,
			metav1.PatchOptions{FieldManager: installManager, Force: ptr.To(true)})
		return err
	})
	if err != nil {
		return fmt.Errorf("apply %s: %w", name, err)
	}
	if gvk.Kind != "CustomResourceDefinition" || established(applied) {
		return nil
	}
	err = untilAccepted(ctx, func() error {
		current, err := target.Get(ctx, object.GetName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !established(current) {
			return errNotEstablished
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", name, err)
	}
	return nil
}

var errNotEstablished = errors.New("not established yet")

// established says whether a custom resource is served.
func established(crd *unstructured.Unstructured) bool {
	conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
	if err != nil {
		return false
	}
	for _, item := range conditions {
		condition, ok := item.(map[string]any)
		if ok && condition["type"] == string(apiextensionsv1.Established) && condition["status"] == string(apiextensionsv1.ConditionTrue) {
			return true
		}
	}
	return false
}

// untilAccepted calls try until it succeeds, the apiserver says that it never
// will, or the context ends; the error is then the last one of try.
func untilAccepted(ctx context.Context, try func() error) error {
	delay := installRetryFirst
	var last error
	for {
		err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			// The request was cut short by the context: the error before it
			// says more.
			if last != nil {
				return last
			}
			return err
		}
		if last = err; neverAccepted(err) {
			return err
		}
		timer := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return last
		case <-timer.C:
		}
		delay = min(delay*2, installRetryMax)
	}
}

// neverAccepted tells an error that a starting apiserver does not give. A
// starting one refuses connections, answers 403 ("not yet ready to handle
// request") and 404 for a namespace that is being made.
func neverAccepted(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	switch status.Status().Code {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusUnsupportedMediaType:
		return true
	}
	return false
}
