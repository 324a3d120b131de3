//go:build linux

package edgenode

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// carrier is an agent whose session is over what a test says.
type carrier struct {
	set  []agent.Transport
	over agent.Transport
}

func (c *carrier) SetTransport(t agent.Transport) { c.set = append(c.set, t) }
func (c *carrier) Carrier() agent.Transport       { return c.over }

func poolOver(t v1alpha1.Transport) v1alpha1.NodePoolSpec {
	return v1alpha1.NodePoolSpec{Network: &v1alpha1.NetworkSpec{Transport: t}}
}

// The agent is told what the pool says when that changes, and a daemon that starts
// again begins with the last transport that there was a session over.
func TestTransportOfThePool(t *testing.T) {
	path := filepath.Join(t.TempDir(), transportFile)
	log := slog.New(slog.DiscardHandler)
	daemon := func(over agent.Transport) (*transport, *carrier) {
		c := &carrier{over: over}
		tr := loadTransport(path, log)
		tr.agent = c
		return tr, c
	}
	begins := func(want agent.Transport) {
		t.Helper()
		if got := loadTransport(path, log).begin(); got != want {
			t.Errorf("a daemon that starts now begins with %s, want %s", got, want)
		}
	}

	tr, c := daemon(agent.QUIC)
	begins(agent.Auto)
	tr.pool(v1alpha1.NodePoolSpec{})
	tr.pool(poolOver(v1alpha1.TransportAuto))
	tr.pool(poolOver(v1alpha1.TransportTCP))
	tr.pool(poolOver(v1alpha1.TransportTCP)) // members change more often
	tr.session()                             // lost and back, over QUIC still
	if d := cmp.Diff([]agent.Transport{agent.TCP}, c.set); d != "" {
		t.Error(d)
	}
	begins(agent.Auto)
	if got := tr.beside(); got != agent.Auto {
		t.Errorf("a renewal is made over %s before there was a session over it", got)
	}
	c.over = agent.TCP
	tr.session()
	begins(agent.TCP)
	if got := tr.beside(); got != agent.TCP {
		t.Errorf("a renewal is made over %s", got)
	}

	// Started again, without a session.
	tr, c = daemon("")
	tr.pool(poolOver(v1alpha1.TransportTCP))
	if len(c.set) != 0 {
		t.Errorf("what the agent began with was set again: %v", c.set)
	}
	tr.pool(poolOver(v1alpha1.TransportQUIC))
	begins(agent.TCP)
	// Auto is no promise that could fail.
	tr.pool(v1alpha1.NodePoolSpec{})
	begins(agent.Auto)
	if d := cmp.Diff([]agent.Transport{agent.QUIC, agent.Auto}, c.set); d != "" {
		t.Error(d)
	}
	// What the session is over already is kept at once.
	c.over = agent.QUIC
	tr.pool(poolOver(v1alpha1.TransportQUIC))
	begins(agent.QUIC)
}

// A transport that this daemon does not know is told and changes nothing.
func TestTransportOfANewerPool(t *testing.T) {
	var logs strings.Builder
	tr := loadTransport(filepath.Join(t.TempDir(), transportFile), slog.New(slog.NewTextHandler(&logs, nil)))
	c := &carrier{over: agent.QUIC}
	tr.agent = c
	tr.pool(poolOver("pigeon"))
	tr.pool(poolOver("pigeon"))
	if err := tr.trouble(agent.Figures{}); err == nil || !strings.Contains(err.Error(), `"pigeon"`) || !strings.Contains(err.Error(), "auto stays in force") {
		t.Errorf("trouble: %v", err)
	}
	if len(c.set) != 0 || tr.begin() != agent.Auto || strings.Count(logs.String(), "pigeon") != 1 {
		t.Errorf("set %v, begins with %s, log:\n%s", c.set, tr.begin(), &logs)
	}
	tr.pool(poolOver(v1alpha1.TransportQUIC))
	if err := tr.trouble(agent.Figures{}); err != nil {
		t.Errorf("trouble after the pool was mended: %v", err)
	}
	own := errors.New("over QUIC: timeout")
	if err := tr.trouble(agent.Figures{Trouble: own}); !errors.Is(err, own) {
		t.Errorf("the agent's own trouble: %v", err)
	}
}

func TestTransportFileIsDamaged(t *testing.T) {
	for _, text := range []string{"", "tcp", `"pigeon"`, `{"transport":"tcp"}`} {
		path := filepath.Join(t.TempDir(), transportFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var logs strings.Builder
		tr := loadTransport(path, slog.New(slog.NewTextHandler(&logs, nil)))
		if tr.begin() != agent.Auto || !strings.Contains(logs.String(), path) {
			t.Errorf("%q: begins with %s, log: %s", text, tr.begin(), &logs)
		}
		// The pool's word mends it.
		tr.agent = &carrier{over: agent.TCP}
		tr.pool(poolOver(v1alpha1.TransportTCP))
		if got := loadTransport(path, slog.New(slog.DiscardHandler)).begin(); got != agent.TCP {
			t.Errorf("%q: begins with %s after the pool was read", text, got)
		}
	}
}
