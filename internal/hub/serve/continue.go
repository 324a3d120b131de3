package serve

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

const (
	// heldSnapshots is how many old snapshots are kept for pagers. A node has a
	// few clients that page; each keeps what changed since in memory.
	heldSnapshots = 8
	// heldFor is how long: what an apiserver's compaction leaves a pager.
	heldFor = 5 * time.Minute
	// tokenFormat tells the hub's tokens from an apiserver's, which have
	// "meta.k8s.io/v1" there.
	tokenFormat = "edge/1"
	// maxToken bounds what is decoded: two names and a collection's.
	maxToken = 4 << 10
)

// errForeignToken: an apiserver gave it, or nobody did.
var errForeignToken = errors.New("the continue token is not the hub's")

// token says where in which snapshot the next page begins.
type token struct {
	Format     string          `json:"v"`
	Version    replica.Version `json:"rv"`
	Collection string          `json:"c"`
	// The last object of the page before.
	Namespace string `json:"ns,omitempty"`
	Name      string `json:"n"`
}

func (t token) String() string {
	t.Format = tokenFormat
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and a number always encode
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseToken(s string) (token, error) {
	var t token
	if len(s) > maxToken {
		return t, errForeignToken
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || json.Unmarshal(b, &t) != nil || t.Format != tokenFormat {
		return t, errForeignToken
	}
	return t, nil
}

// after returns what of a page's objects, which are in order, follow the token.
func (t token) after(objects []*replica.Object) []*replica.Object {
	last := &replica.Object{Namespace: t.Namespace, Name: t.Name}
	at, found := slices.BinarySearchFunc(objects, last, replica.Compare)
	if found {
		at++
	}
	return objects[at:]
}

// held keeps the snapshots that somebody pages through.
type held struct {
	clock clock.PassiveClock

	mu        sync.Mutex      // guards snapshots
	snapshots []*heldSnapshot // the one used last is last
}

type heldSnapshot struct {
	*replica.Snapshot
	used time.Time
}

// keep holds a snapshot for the pages to come.
func (h *held) keep(s *replica.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	at := slices.IndexFunc(h.snapshots, func(have *heldSnapshot) bool {
		return have.Collection == s.Collection && have.Version == s.Version
	})
	if at >= 0 {
		h.snapshots = slices.Delete(h.snapshots, at, at+1)
	}
	h.snapshots = append(h.snapshots, &heldSnapshot{s, h.clock.Now()})
	if over := len(h.snapshots) - heldSnapshots; over > 0 {
		h.snapshots = slices.Delete(h.snapshots, 0, over)
	}
}

// find returns the held snapshot of a version, nil if there is none.
func (h *held) find(c replica.Collection, version replica.Version) *replica.Snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	for _, s := range h.snapshots {
		if s.Collection == c && s.Version == version {
			return s.Snapshot
		}
	}
	return nil
}

// expire drops what was not used for long. The caller holds mu.
func (h *held) expire() {
	limit := h.clock.Now().Add(-heldFor)
	h.snapshots = slices.DeleteFunc(h.snapshots, func(s *heldSnapshot) bool { return s.used.Before(limit) })
}
