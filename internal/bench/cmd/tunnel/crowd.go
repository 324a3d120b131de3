//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/e2e/crowd"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

const (
	// How many nodes there are.
	crowdQuick, crowdNodes, crowdFull = 200, 1000, 10_000
	// idleWindow is over how long the idle gateway's processor time is taken:
	// three keep-alives of every node. With ten thousand nodes a collection of
	// garbage takes up to a second of a core, and there is one in half a minute or
	// more: idleWindowFull has its share of them, where a shorter one has all of one
	// or none.
	idleWindow      = 20 * time.Second
	idleWindowQuick = 10 * time.Second
	idleWindowFull  = 90 * time.Second
	// otherDescriptors is what this process has open beside its nodes, amply.
	otherDescriptors = 256
	// crowdBound ends a wait for all nodes: twice the aim for the storm and a
	// full crowd's handshakes on two cores.
	crowdBound = 3 * time.Minute

	// The aims are those for 10,000 nodes. Memory is a node's, so that they hold
	// for fewer; the processor's share is a tenth with a tenth of the nodes.
	aimMemory    = 77.0 // KiB
	aimIdleShare = 20.0 // per cent of a core
	aimStorm     = 30.0 // s
	aimStormPeak = 2.0
)

// crowdSubject is a cloud end with many nodes.
type crowdSubject struct {
	name string
	// start starts the cloud end.
	start func(context.Context, *bed) error
	// connect connects n nodes, which stay until the end of ctx, when wait
	// returns.
	connect func(ctx context.Context, b *bed, n int) (nodes *crowdProcess, wait func() error, err error)
}

// crowdResult is what a round gave.
type crowdResult struct {
	memory, idle   float64 // KiB a node; per cent of a core
	p50, p99, last float64 // s; from the kill of the gateway until a node is back
	peak           float64 // by the memory of the idle gateway
}

// measureCrowd is what many idle nodes cost their gateway, and how they return
// when it is killed. One process holds all nodes, another the gateway, and this one
// the network, so that rounds take turns.
func measureCrowd(ctx context.Context, w *world) ([]bench.Row, error) {
	n, window := crowdNodes, idleWindow
	switch {
	case w.full:
		n, window = crowdFull, idleWindowFull
	case w.quick:
		n, window = crowdQuick, idleWindowQuick
	}
	// Each node has a line of its own in the field, so that the one which all
	// share here has a delay and no rate.
	l := line{name: "60 ms", shape: netlab.Shape{Delay: 30 * time.Millisecond}}
	subjects, err := w.crowdSubjects(n)
	if err != nil {
		return nil, err
	}
	memory, idle := make([]bench.Sample, len(subjects)), make([]bench.Sample, len(subjects))
	var p50, p99, last, peak bench.Sample
	for seed := range w.seeds {
		for i, s := range subjects {
			r, err := w.crowdRound(ctx, s, uint64(seed+1), l, n, window)
			if err != nil {
				return nil, err
			}
			memory[i], idle[i] = append(memory[i], r.memory), append(idle[i], r.idle)
			if i == 0 {
				p50, p99, last, peak = append(p50, r.p50), append(p99, r.p99), append(last, r.last), append(peak, r.peak)
			}
		}
	}
	names := make([]subject, len(subjects))
	for i, s := range subjects {
		names[i].name = s.name
	}
	w.report("gateway memory per idle node", "KiB", names, memory)
	w.report("idle gateway", "% of a core", names, idle)
	w.report("storm, p99", "s", names[:1], []bench.Sample{p99})
	w.report("storm, peak memory by idle", "ratio", names[:1], []bench.Sample{peak})
	of := fmt.Sprintf(", %d nodes", n)
	rows := compare("gateway memory per idle node"+of, "KiB", aimMemory, names, memory)
	rows = append(rows, compare("processor of the idle gateway"+of, "% of a core", aimIdleShare*float64(n)/crowdFull, names, idle)...)
	rows = append(rows, compare("gateway killed: nodes back after, p50"+of+", 60 ms", "s", 0, names[:1], []bench.Sample{p50})...)
	rows = append(rows, compare("gateway killed: nodes back after, p99"+of+", 60 ms", "s", aimStorm, names[:1], []bench.Sample{p99})...)
	rows = append(rows, compare("gateway killed: the last node back after"+of+", 60 ms", "s", 0, names[:1], []bench.Sample{last})...)
	return append(rows, compare("gateway killed: peak memory as they return, by that of the idle gateway before"+of, "ratio", aimStormPeak, names[:1], []bench.Sample{peak})...), nil
}

// crowdSubjects are those for whose n nodes the descriptors of this process
// last. An idle node of either has one; one of ours that returns has two for a
// moment, for it may try TCP beside QUIC.
func (w *world) crowdSubjects(n int) ([]crowdSubject, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("limit of descriptors: %w", err)
	}
	have := int(min(limit.Max, 1<<30)) - otherDescriptors // the runtime has raised the soft limit to the hard one
	switch {
	case have < n:
		return nil, fmt.Errorf("%d nodes need a descriptor each, and this process may have %d (ulimit -Hn)", n, limit.Max)
	case have < 2*n:
		w.say("%d nodes: with %d descriptors (ulimit -Hn) not all of them can try TCP beside QUIC as they return; who finds none tries again later", n, limit.Max)
	}
	subjects := []crowdSubject{w.ownCrowd()}
	if w.konnServer != "" {
		subjects = append(subjects, w.konnectivityCrowd())
	}
	return subjects, nil
}

// crowdRound measures a subject once.
func (w *world) crowdRound(ctx context.Context, s crowdSubject, seed uint64, l line, n int, window time.Duration) (r crowdResult, err error) {
	err = w.onBed(ctx, s.name, seed, l, func(ctx context.Context, b *bed) (err error) {
		if err := s.start(ctx, b); err != nil {
			return err
		}
		end := b.ends[0]
		settle := func() (int, error) {
			sctx, cancel := context.WithTimeout(ctx, crowdBound)
			defer cancel()
			kib, err := crowd.Settled(sctx, end.Process.Pid)
			if err != nil {
				err = fmt.Errorf("%w%s", err, b.logs())
			}
			return kib, err
		}
		empty, err := settle()
		if err != nil {
			return err
		}
		cctx, cancel := context.WithCancel(ctx)
		nodes, wait, err := s.connect(cctx, b, n)
		if err != nil {
			cancel()
			return err
		}
		defer func() {
			cancel()
			err = errors.Join(err, wait())
		}()
		if nodes != nil {
			if _, err := nodes.returned(ctx, time.Unix(0, 0)); err != nil {
				return fmt.Errorf("%w%s", err, b.logs())
			}
		}
		idle, err := settle()
		if err != nil {
			return err
		}
		r.memory = float64(idle-empty) / float64(n)
		if r.idle, err = share(ctx, end, window); err != nil {
			return err
		}
		if nodes == nil {
			return nil
		}
		gone, err := b.replace(ctx, end, s.start)
		if err != nil {
			return err
		}
		back, err := nodes.returned(ctx, gone)
		if err != nil {
			return fmt.Errorf("after the gateway was killed: %w%s", err, b.logs())
		}
		r.p50, r.p99, r.last = back.P50, back.P99, back.Last
		end = b.ends[0]
		if _, err := settle(); err != nil {
			return err
		}
		peak, err := crowd.Memory(end.Process.Pid, crowd.Peak)
		r.peak = float64(peak) / float64(idle)
		return err
	})
	return r, err
}

// replace kills an end as a crash would, starts it again and returns when it
// was killed.
func (b *bed) replace(ctx context.Context, end *exec.Cmd, start func(context.Context, *bed) error) (time.Time, error) {
	if err := end.Process.Kill(); err != nil {
		return time.Time{}, err
	}
	gone := time.Now()
	_ = end.Wait() // by our signal
	b.ends = nil
	return gone, start(ctx, b)
}

// share is how much of a core a process takes, in per cent.
func share(ctx context.Context, c *exec.Cmd, window time.Duration) (float64, error) {
	before, err := cpu(c)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	select {
	case <-time.After(window):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := cpu(c)
	return 100 * (after - before).Seconds() / time.Since(start).Seconds(), err
}

// ownCrowd is the product: its gateway, and agents that choose their transport
// by themselves.
func (w *world) ownCrowd() crowdSubject {
	return crowdSubject{
		name: "ours",
		start: func(ctx context.Context, b *bed) error {
			if err := os.Remove(b.socket()); err != nil && !errors.Is(err, os.ErrNotExist) { // a killed one's
				return err
			}
			return b.startCloud(ctx, "gateway", "-tcp")
		},
		connect: func(ctx context.Context, b *bed, n int) (*crowdProcess, func() error, error) {
			return w.startNodes(ctx, b, n)
		},
	}
}

// nodeCredentials are the node's certificate and who signed the cloud end's.
func (w *world) nodeCredentials() (func() (*tls.Certificate, error), *x509.CertPool, error) {
	return credentials(w.pki, "node")
}
