//go:build linux

package controllers_test

import (
	"io"
	"log/slog"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
)

func TestInstallAgain(t *testing.T) {
	w := real(t)
	versions := func() map[string]string {
		objects, err := controllers.Manifests()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, object := range objects {
			current := &unstructured.Unstructured{}
			current.SetGroupVersionKind(object.GetObjectKind().GroupVersionKind())
			if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(object), current); err != nil {
				t.Fatal(err)
			}
			found[current.GetKind()+" "+current.GetName()] = current.GetResourceVersion()
		}
		return found
	}
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	before := versions()
	started := time.Now()
	if err := controllers.Install(t.Context(), w.adminConf, logger); err != nil {
		t.Fatal(err)
	}
	t.Logf("installed again in %s", time.Since(started))
	for id, version := range versions() {
		if before[id] != version {
			t.Errorf("%s was changed", id)
		}
	}
	// What was changed by hand is put back.
	update(t, w, &rbacv1.ClusterRole{}, controllers.HubRole, func(r *rbacv1.ClusterRole) {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"list"}})
	})
	if err := controllers.Install(t.Context(), w.adminConf, logger); err != nil {
		t.Fatal(err)
	}
	var role rbacv1.ClusterRole
	w.get(t, &role, controllers.HubRole)
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			if resource == "secrets" {
				t.Error("the hubs' role still has secrets")
			}
		}
	}
}
