package controllers

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// appliedCache remembers what was applied, so that a unit deployment of a
// thousand pools does not send a thousand requests each time a pod changes. It
// is only a saving: what is not in it is applied.
type appliedCache struct {
	mu sync.Mutex
	// byOwner has a mark for each object of an owner, by kind and name; guarded
	// by mu.
	byOwner map[types.NamespacedName]map[string]appliedMark
}

// appliedMark is the digest of what was applied, and the object's version
// right after.
type appliedMark struct {
	digest  [sha256.Size]byte
	version string
}

func newAppliedCache() *appliedCache {
	return &appliedCache{byOwner: map[types.NamespacedName]map[string]appliedMark{}}
}

func newAppliedMark(want client.Object) (appliedMark, error) {
	text, err := json.Marshal(want)
	if err != nil {
		return appliedMark{}, fmt.Errorf("encode %s: %w", want.GetName(), err)
	}
	return appliedMark{digest: sha256.Sum256(text)}, nil
}

// holds says whether have is still as it was after the same want was applied.
func (c *appliedCache) holds(owner types.NamespacedName, want, have client.Object, mark appliedMark) bool {
	for key, value := range want.GetLabels() {
		if have.GetLabels()[key] != value {
			return false
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.byOwner[owner][appliedKey(want)]
	return ok && known.digest == mark.digest && known.version == specVersion(have)
}

func (c *appliedCache) remember(owner types.NamespacedName, want, result client.Object, mark appliedMark) {
	mark.version = specVersion(result)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byOwner[owner] == nil {
		c.byOwner[owner] = map[string]appliedMark{}
	}
	c.byOwner[owner][appliedKey(want)] = mark
}

func (c *appliedCache) forget(owner types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byOwner, owner)
}

func appliedKey(object client.Object) string {
	return object.GetObjectKind().GroupVersionKind().Kind + "/" + object.GetName()
}

// specVersion changes whenever an object's spec does. Kinds that count no
// generation (Service) change with everything.
func specVersion(object client.Object) string {
	if generation := object.GetGeneration(); generation != 0 {
		return fmt.Sprintf("%s/%d", object.GetUID(), generation)
	}
	return fmt.Sprintf("%s/rv%s", object.GetUID(), object.GetResourceVersion())
}
