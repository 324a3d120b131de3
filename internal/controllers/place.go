package controllers

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// placement is what a Node is to carry because of its pool and its enrolment
// record.
type placement struct {
	labels      map[string]string
	annotations map[string]string
	taints      []corev1.Taint // unique by key and effect
}

// managedRecord is the JSON of v1alpha1.ManagedAnnotation: what the node
// controller put on a Node. What is not in it belongs to somebody else and is
// left alone. Lists are sorted; a taint is "key:Effect".
type managedRecord struct {
	Labels      []string `json:"labels,omitempty"`
	Annotations []string `json:"annotations,omitempty"`
	Taints      []string `json:"taints,omitempty"`
}

// desiredPlacement merges a pool's declarations with a node's: the node wins,
// and nothing wins over the pool label.
func desiredPlacement(pool *v1alpha1.NodePool, node *v1alpha1.EdgeNode) placement {
	// The pool is the node's zone unless a label says otherwise, so that what
	// the field already builds on zones (traffic distribution, spread, the node
	// controller's eviction limits) keeps to sites.
	p := placement{labels: map[string]string{corev1.LabelTopologyZone: pool.Name}, annotations: map[string]string{}}
	maps.Copy(p.labels, pool.Spec.Labels)
	maps.Copy(p.labels, node.Spec.Labels)
	p.labels[v1alpha1.PoolLabel] = pool.Name
	maps.Copy(p.annotations, pool.Spec.Annotations)
	delete(p.annotations, v1alpha1.ManagedAnnotation)

	byID := map[string]corev1.Taint{}
	for _, taint := range slices.Concat(pool.Spec.Taints, node.Spec.Taints) {
		if taint.Key == v1alpha1.UnplacedTaint {
			continue
		}
		byID[taintID(taint)] = corev1.Taint{Key: taint.Key, Value: taint.Value, Effect: taint.Effect}
	}
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		p.taints = append(p.taints, byID[id])
	}
	return p
}

// applyPlacement changes node to carry p: it removes what an earlier placement
// put there and p does not want, leaves everything of others alone, and takes
// the unplaced taint away.
func applyPlacement(node *corev1.Node, p placement) error {
	old := readManaged(node)

	node.Labels = mergeOwned(node.Labels, old.Labels, p.labels)
	node.Annotations = mergeOwned(node.Annotations, old.Annotations, p.annotations)

	record := managedRecord{
		Labels:      slices.Sorted(maps.Keys(p.labels)),
		Annotations: slices.Sorted(maps.Keys(p.annotations)),
	}
	wanted := map[string]corev1.Taint{}
	for _, taint := range p.taints {
		wanted[taintID(taint)] = taint
		record.Taints = append(record.Taints, taintID(taint))
	}
	var taints []corev1.Taint
	for _, taint := range node.Spec.Taints {
		id := taintID(taint)
		want, isWanted := wanted[id]
		switch {
		case taint.Key == v1alpha1.UnplacedTaint:
		case isWanted:
			// Its order and its time stay, so that a taint that did not change
			// does not look changed.
			taint.Value = want.Value
			taints = append(taints, taint)
			delete(wanted, id)
		case !slices.Contains(old.Taints, id):
			taints = append(taints, taint)
		}
	}
	for _, taint := range p.taints {
		if _, missing := wanted[taintID(taint)]; missing {
			taints = append(taints, taint)
		}
	}
	node.Spec.Taints = taints

	text, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("record what is managed on node %s: %w", node.Name, err)
	}
	node.Annotations[v1alpha1.ManagedAnnotation] = string(text)
	return nil
}

// readManaged reads the record; one that cannot be read is as good as none,
// and is written anew.
func readManaged(node *corev1.Node) managedRecord {
	var record managedRecord
	if err := json.Unmarshal([]byte(node.Annotations[v1alpha1.ManagedAnnotation]), &record); err != nil {
		return managedRecord{}
	}
	return record
}

// mergeOwned returns current without the keys of old that are not wanted, and
// with wanted on top.
func mergeOwned(current map[string]string, old []string, wanted map[string]string) map[string]string {
	merged := map[string]string{}
	maps.Copy(merged, current)
	for _, key := range old {
		if _, keep := wanted[key]; !keep {
			delete(merged, key)
		}
	}
	maps.Copy(merged, wanted)
	return merged
}

func taintID(taint corev1.Taint) string { return taint.Key + ":" + string(taint.Effect) }

// isPlaced says whether a Node carries its pool and no longer the taint it
// registered with.
func isPlaced(node *corev1.Node, pool string) bool {
	return node.Labels[v1alpha1.PoolLabel] == pool &&
		!slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UnplacedTaint })
}

// nodeReady returns a Node's own Ready condition.
func nodeReady(node *corev1.Node) (ready bool, reason, message string) {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue, condition.Reason, strings.TrimSpace(condition.Message)
		}
	}
	return false, "", ""
}
