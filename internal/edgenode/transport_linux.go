//go:build linux

package edgenode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// transportFile in conf/ remembers the transport of the node's pool, so that the
// agent begins with it: it connects before anything of the pool can be read.
const transportFile = "transport.json"

// carried is what a transport is for: the agent.
type carried interface {
	SetTransport(agent.Transport)
	Carrier() agent.Transport
}

// transport gives the agent the transport of the node's pool. It remembers one
// only once there has been a session over it: a node that starts again then
// begins with what is known to get through, and hears what its pool says now.
type transport struct {
	path string
	log  *slog.Logger
	// agent is set before the first session.
	agent carried

	mu     sync.Mutex // guards all below
	wanted agent.Transport
	kept   agent.Transport // what the file says
	fault  error           // the pool names none that this daemon knows
}

// loadTransport reads what the node remembers; auto if that is nothing.
func loadTransport(path string, log *slog.Logger) *transport {
	t := &transport{path: path, log: log, wanted: agent.Auto, kept: agent.Auto}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t
	}
	var name string
	if err == nil {
		err = json.Unmarshal(data, &name)
	}
	var known agent.Transport
	if err == nil {
		known, err = agent.ParseTransport(name)
	}
	if err != nil {
		log.Warn("the remembered transport cannot be read, auto until the pool has been", "file", path, "error", err)
		t.kept = "" // whatever the pool says is written
		return t
	}
	t.wanted, t.kept = known, known
	return t
}

// begin is what the agent begins with.
func (t *transport) begin() agent.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wanted
}

// beside is what a connection beside the agent's sessions is made over: what the
// pool says, once that is proven.
func (t *transport) beside() agent.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wanted != t.kept {
		return agent.Auto
	}
	return t.kept
}

// pool takes what the node's pool says. One that this daemon does not know (the
// cluster is newer) changes nothing.
func (t *transport) pool(spec v1alpha1.NodePoolSpec) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := ""
	if spec.Network != nil {
		name = string(spec.Network.Transport)
	}
	wanted, err := agent.ParseTransport(name)
	if err != nil {
		if t.fault == nil {
			t.log.Error("the pool's network.transport changes nothing", "error", err, "in_force", t.wanted)
		}
		t.fault = fmt.Errorf("network.transport of the pool: %w; %s stays in force until the node's engine is upgraded or the pool changed", err, t.wanted)
		return
	}
	t.fault = nil
	if wanted != t.wanted {
		t.log.Info("the pool's transport is another", "transport", wanted, "before", t.wanted)
		t.wanted = wanted
		t.agent.SetTransport(wanted)
	}
	t.remember()
}

// session is told that one has begun.
func (t *transport) session() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remember()
}

// remember keeps what is wanted once it is proven, with mu held.
func (t *transport) remember() {
	if t.wanted == t.kept || t.wanted != agent.Auto && t.agent.Carrier() != t.wanted {
		return
	}
	if err := writeJSON(t.path, t.wanted); err != nil {
		t.log.Error("remember the pool's transport", "error", err)
		return
	}
	t.kept = t.wanted
}

// trouble is why the node is not carried as its pool says; nil if it is.
func (t *transport) trouble(f agent.Figures) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fault != nil {
		return t.fault
	}
	return f.Trouble
}
