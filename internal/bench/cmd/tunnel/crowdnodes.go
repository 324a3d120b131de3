//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/e2e/crowd"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// crowdReturn is how the nodes of a crowd have returned since a moment, in seconds
// after it. Missing says how many have not; nothing else counts then.
type crowdReturn struct {
	Missing        string  `json:"missing,omitempty"`
	P50, P99, Last float64 `json:",omitempty"`
}

const (
	// crowdGCPercent is GOGC of a crowd: its nodes take a few GB.
	crowdGCPercent = 400
	// crowdMemory is what a node takes of a crowd's memory at most, in bytes, with the
	// garbage that its return makes.
	crowdMemory = 360 << 10
)

// crowdProcess is a process that is many nodes.
type crowdProcess struct {
	in  io.Writer
	out *json.Decoder
}

// startNodes starts n nodes as one process on the edge's side of the line. wait ends
// them.
func (w *world) startNodes(ctx context.Context, b *bed, n int) (nodes *crowdProcess, wait func() error, err error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), w.self, roleCommand, "crowd", "-pki", w.pki, "-listen", gatewayAddr.String(), "-nodes", strconv.Itoa(n))
	log, err := os.Create(filepath.Join(b.dir, "crowd.log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	cmd.Env = append(os.Environ(), "GODEBUG=madvdontneed=0") // what reserve has taken stays
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := b.edge.Start(cmd); err != nil {
		return nil, nil, err
	}
	b.children = append(b.children, cmd)
	return &crowdProcess{in: in, out: json.NewDecoder(out)}, func() error { return errors.Join(in.Close(), cmd.Wait()) }, nil
}

// returned waits until all nodes have a session that is younger than since, at most
// crowdBound.
func (p *crowdProcess) returned(ctx context.Context, since time.Time) (crowdReturn, error) {
	ctx, cancel := context.WithTimeout(ctx, crowdBound)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond) // the nodes know when they were back
	defer tick.Stop()
	for {
		var r crowdReturn
		if _, err := fmt.Fprintln(p.in, since.UnixNano()); err != nil {
			return r, fmt.Errorf("ask the crowd: %w", err)
		}
		if err := p.out.Decode(&r); err != nil {
			return r, fmt.Errorf("ask the crowd: %w", err)
		}
		if r.Missing == "" {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, errors.New(r.Missing)
		case <-tick.C:
		}
	}
}

// crowdRole is a crowd of nodes, whose agents choose their transport by themselves.
// For each moment that it reads, in Unix nanoseconds, it says how they have returned
// since. It ends with its input.
func crowdRole(dir, server string, n int) error {
	// What is measured is the cloud end, which shares the machine with so many nodes:
	// their collections would take processor from it.
	debug.SetGCPercent(crowdGCPercent)
	reserve(n * crowdMemory)
	certificate, err := certifier(dir)
	if err != nil {
		return err
	}
	_, pool, err := credentials(dir, "node")
	if err != nil {
		return err
	}
	nodes, err := crowd.New(n, func(i int) (agent.Config, error) {
		name := fmt.Sprintf("crowd-%d", i)
		cert, err := certificate(name)
		return agent.Config{
			Gateways: []string{server}, RootCAs: pool, NodeName: name, Heartbeat: healthy,
			Certificate: func() (*tls.Certificate, error) { return cert, nil },
		}, err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- nodes.Run(ctx) }()
	answers, questions := json.NewEncoder(os.Stdout), bufio.NewScanner(os.Stdin)
	for err == nil && questions.Scan() {
		var since int64
		if since, err = strconv.ParseInt(questions.Text(), 10, 64); err == nil {
			err = answers.Encode(returnOf(nodes, time.Unix(0, since)))
		}
	}
	cancel()
	return errors.Join(err, questions.Err(), <-done)
}

// reserve makes size bytes of memory the process's own before it needs them. Each node
// has its own memory where it is real; here ten thousand that return at once take
// pages from the system as fast as it gives them. Where a virtual machine has not used
// a page yet, or has given it back, its host takes up to 50 microseconds for it, and
// a quarter of all the processor time of a storm went there.
func reserve(size int) {
	b := make([]byte, size)
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	runtime.KeepAlive(b)
	runtime.GC()
}

func returnOf(nodes *crowd.Crowd, since time.Time) crowdReturn {
	if err := nodes.Returned(since); err != nil {
		return crowdReturn{Missing: err.Error()}
	}
	_, back := nodes.Return(since)
	return crowdReturn{P50: back.Quantile(0.5).Seconds(), P99: back.Quantile(0.99).Seconds(), Last: back.Quantile(1).Seconds()}
}

// healthy is what a node's agent says when all is well.
func healthy() tunnel.Heartbeat {
	return tunnel.Heartbeat{Autonomy: &tunnel.Autonomy{}}.WithKubeletAge(3 * time.Second)
}

// certifier returns what makes nodes' certificates. They share a key: what is
// measured is the cloud end.
func certifier(dir string) (func(name string) (*tls.Certificate, error), error) {
	store, err := pki.Open(dir, nil)
	if err != nil {
		return nil, err
	}
	ca, err := store.Authority("ca", "edge-bench")
	if err != nil {
		return nil, err
	}
	key, err := pki.GenerateKey()
	if err != nil {
		return nil, err
	}
	return func(name string) (*tls.Certificate, error) {
		leaf, err := ca.Sign(pki.Request{Name: "node", CommonName: "system:node:" + name, Organizations: []string{"system:nodes"}, Client: true}, &key.PublicKey, time.Now())
		if err != nil {
			return nil, err
		}
		pair, err := pki.TLSCertificate(key, leaf)
		return &pair, err
	}, nil
}
