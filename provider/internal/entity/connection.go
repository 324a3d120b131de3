package entity

import (
	"sync"

	"github.com/hashicorp/terraform-plugin-framework/diag"
)

// Connection is what the provider hands to its resources: an engine that is
// opened when the first of them needs it, and what must happen once a run.
type Connection struct {
	words Words
	open  func() (Engine, error)

	mu     sync.Mutex
	warned map[string]bool // cluster ids a warning was given for; guarded by mu
}

// NewConnection returns a connection for the users of a tool. It calls open at
// most once, when an engine is first needed.
func NewConnection(words Words, open func() (Engine, error)) *Connection {
	return &Connection{words: words, open: sync.OnceValues(open), warned: map[string]bool{}}
}

// Engine returns the engine, opening it the first time.
func (c *Connection) Engine() (Engine, error) { return c.open() }

// firstWarning says whether no warning was given for the cluster before, and
// remembers this one. A run has one connection, so a cluster with a hundred
// nodes that cannot be reached is one warning.
func (c *Connection) firstWarning(clusterID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.warned[clusterID] {
		return false
	}
	c.warned[clusterID] = true
	return true
}

// FromProviderData takes the connection out of what the framework passes to
// Configure. It is nil before the provider is configured (validation).
func FromProviderData(data any, diags *diag.Diagnostics) *Connection {
	if data == nil {
		return nil
	}
	c, ok := data.(*Connection)
	if !ok {
		diags.AddError("Provider data of another kind", "The provider passed its resources something that is not its connection to the engine. This is a bug in the provider: please report it.")
		return nil
	}
	return c
}
