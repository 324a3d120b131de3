//go:build linux

package quickstart

import (
	"encoding/json"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// objects returns what the quickstart has made in Kubernetes, by kind, namespace
// and name, as far as it is declared: without status, and without what is new in
// each cluster.
func objects(t *testing.T, r *rig.Rig) map[string]any {
	t.Helper()
	var list struct{ Items []map[string]any }
	raw := r.Kubectl(t, cluster, "get", "nodepools,edgenodes,unitdeployments,deployments,services", "-A", "-o", "json")
	if err := json.Unmarshal([]byte(raw), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	kinds := map[string]int{}
	for _, o := range list.Items {
		meta := o["metadata"].(map[string]any)
		kind, name := o["kind"].(string), meta["name"].(string)
		if kind == "Service" && name == "kubernetes" {
			continue // the apiserver's own, with its port
		}
		namespace, _ := meta["namespace"].(string)
		kinds[kind]++
		out[kind+" "+namespace+"/"+name] = normal(o)
	}
	for _, kind := range []string{"NodePool", "EdgeNode", "UnitDeployment", "Deployment", "Service"} {
		if kinds[kind] == 0 {
			t.Errorf("there is no %s to compare", kind)
		}
	}
	return out
}

// normal takes out what differs between two clusters that were declared alike.
func normal(o map[string]any) map[string]any {
	delete(o, "status")
	meta := o["metadata"].(map[string]any)
	for _, field := range []string{"uid", "creationTimestamp", "resourceVersion", "managedFields", "generation"} {
		delete(meta, field)
	}
	// Signed by the cluster's own key, and it names the ranges of its pods.
	if notes, ok := meta["annotations"].(map[string]any); ok && notes[v1alpha1.PolicyAnnotation] != nil {
		notes[v1alpha1.PolicyAnnotation] = "signed"
	}
	owners, _ := meta["ownerReferences"].([]any)
	for _, owner := range owners {
		delete(owner.(map[string]any), "uid")
	}
	if spec, ok := o["spec"].(map[string]any); ok && o["kind"] == "Service" && spec["clusterIP"] != "None" {
		delete(spec, "clusterIP")
		delete(spec, "clusterIPs")
	}
	return o
}
