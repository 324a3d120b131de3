package controllers

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestManifests(t *testing.T) {
	objects, err := Manifests()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, object := range objects {
		gvk := object.GetObjectKind().GroupVersionKind()
		if _, known := kindResource[gvk.GroupKind()]; !known {
			t.Errorf("Install knows no resource for %s", gvk)
		}
		id := gvk.Kind + " " + object.GetNamespace() + "/" + object.GetName()
		if seen[id] {
			t.Errorf("%s is there twice", id)
		}
		seen[id] = true
	}
	for _, want := range []string{
		"Namespace /edge-system", "CustomResourceDefinition /edgenodes.edgewright.dev", "CustomResourceDefinition /nodepools.edgewright.dev",
		"CustomResourceDefinition /unitdeployments.edgewright.dev", "ClusterRole /" + HubRole,
		"ValidatingAdmissionPolicyBinding /edge-node-self", "ValidatingAdmissionPolicyBinding /edge-node-unplaced",
	} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
	// The hub's role is bound by name alone.
	for id := range seen {
		if strings.HasPrefix(id, "ClusterRoleBinding") && strings.Contains(id, "hub") {
			t.Errorf("%s binds hubs at large", id)
		}
	}
}

func TestUntilAccepted(t *testing.T) {
	refusedConnection := errors.New("connection refused")
	resource := schema.GroupResource{Resource: "things"}
	invalid := apierrors.NewBadRequest("wrong")
	for _, c := range []struct {
		what  string
		errs  []error
		want  error
		calls int
	}{
		{"at once", nil, nil, 1},
		{"while starting", []error{refusedConnection, apierrors.NewForbidden(resource, "x", errors.New("not yet ready")), apierrors.NewNotFound(resource, "ns"), apierrors.NewInternalError(errors.New("x"))}, nil, 5},
		{"never", []error{refusedConnection, invalid}, invalid, 2},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				err := untilAccepted(t.Context(), func() error {
					calls++
					if calls <= len(c.errs) {
						return c.errs[calls-1]
					}
					return nil
				})
				if !errors.Is(err, c.want) || calls != c.calls {
					t.Errorf("%d calls gave %v", calls, err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		calls := 0
		err := untilAccepted(ctx, func() error {
			calls++
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return refusedConnection
		})
		if !errors.Is(err, refusedConnection) {
			t.Errorf("it ended with %v", err)
		}
		// At most every half second on average, and never in a hot loop.
		if calls < 7000 || calls > 15000 {
			t.Errorf("%d calls in an hour", calls)
		}
	})
}
