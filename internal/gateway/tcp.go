package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// maxTCPHandshakes bounds the handshakes under way: each costs a goroutine,
	// a descriptor and a millisecond of CPU. More wait in the listener's queue.
	maxTCPHandshakes = 1024
	// maxTCPHandshakesFrom bounds those of one source (an IPv6 /64): one that
	// opens connections and says nothing fills no more than a sixteenth.
	maxTCPHandshakesFrom = 64
	// joinStreams is the session's own stream and that of the request: a device
	// that joins is a stranger, and may make the gateway hold nothing else.
	joinStreams = 2
	// windowBudget is by how much the receive windows of all sessions may grow
	// together: 128 fast uploads at 60 ms and 500 Mbit/s.
	windowBudget = 512 << 20
)

// ServeTCP serves nodes and joining devices whose network lets no UDP through,
// on ln, which it owns from here on, until ctx ends or the gateway is closed;
// both return nil. The port should be that of ServePacket: agents try both. The
// end of ctx closes every session of this listener at once; Close drains.
func (g *Gateway) ServeTCP(ctx context.Context, ln net.Listener) error {
	return g.serving(ctx, ln, func(ctx context.Context) error { return g.serveTCP(ctx, ln) })
}

func (g *Gateway) serveTCP(ctx context.Context, ln net.Listener) error {
	conf := g.tlsConfig()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	places := make(chan struct{}, maxTCPHandshakes)
	from := newSourceCount(maxTCPHandshakesFrom)
	delay := time.Duration(0)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := ln.Accept()
		switch {
		case err == nil:
			delay = 0
			conns.Go(func() {
				tc := g.acceptTCP(ctx, c, conf, from)
				<-places
				if tc != nil {
					g.serveTLS(ctx, tc, &conns)
				}
			})
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("gateway: accept on %s: %w", ln.Addr(), err)
		}
		<-places
		// Out of descriptors or the like: go on after a while, as net/http does.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		g.cfg.Logger.Warn("accept", "listener", ln.Addr(), "error", err, "retry", delay)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
	}
}

// acceptTCP does the handshake of a connection; nil if that is none of ours.
func (g *Gateway) acceptTCP(ctx context.Context, c net.Conn, conf *tls.Config, from *sourceCount) *tls.Conn {
	remote := tunnel.AddrPort(c.RemoteAddr())
	// As with QUIC, where more handshakes come than can be done, those that are
	// too many are refused before any work is done for them.
	if !g.accepted.Allow() || !from.add(remote.Addr()) {
		g.metrics.handshake(tunnel.OverTCP, "refused")
		_ = c.Close() // nothing was said on it
		return nil
	}
	defer from.remove(remote.Addr())
	g.metrics.handshake(tunnel.OverTCP, "begun")
	tc, err := handshakeTCP(ctx, c, conf)
	if err != nil {
		// As common as port scanners; QUIC's are not logged either.
		g.cfg.Logger.Debug("TLS handshake", "remote", remote, "error", err)
		return nil
	}
	g.metrics.handshake(tunnel.OverTCP, "done")
	return tc
}

// serveTLS makes a session of a connection and serves it, in goroutines that
// group counts. It has returned by the time that a node's session runs.
func (g *Gateway) serveTLS(ctx context.Context, tc *tls.Conn, group *sync.WaitGroup) {
	opts := tunnel.MuxOptions{Budget: g.budget}
	switch tc.ConnectionState().NegotiatedProtocol {
	case tunnel.JoinALPN, tunnel.RenewALPN:
		opts.Streams = joinStreams
	}
	sess, err := tunnel.NewMuxSession(tc, opts)
	if err != nil {
		g.cfg.Logger.Warn("session over TCP", "remote", tunnel.AddrPort(tc.RemoteAddr()), "error", err)
		return
	}
	// A session that has ended still says why; this waits for that.
	group.Go(func() { <-sess.Gone() })
	g.serveSession(ctx, sess, tc.ConnectionState(), group)
}

// handshakeTCP makes a TLS connection of c, or closes it.
func handshakeTCP(ctx context.Context, c net.Conn, conf *tls.Config) (*tls.Conn, error) {
	tc := tls.Server(c, conf)
	ctx, cancel := context.WithTimeout(ctx, tunnel.TLSTimeout)
	defer cancel()
	err := tunnel.TuneTCP(c)
	if err == nil {
		err = tc.HandshakeContext(ctx)
	}
	if err == nil && tc.ConnectionState().NegotiatedProtocol == "" {
		err = errors.New("the client speaks none of the tunnel's protocols")
	}
	if err != nil {
		_ = c.Close() // the handshake's error is the one that counts
		return nil, err
	}
	return tc, nil
}

// sourceCount counts connections per source address.
type sourceCount struct {
	max int

	mu sync.Mutex // guards n
	n  map[netip.Prefix]int
}

func newSourceCount(max int) *sourceCount { return &sourceCount{max: max, n: map[netip.Prefix]int{}} }

// add counts one more and returns true, unless there are too many.
func (s *sourceCount) add(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := source(a)
	if s.n[key] >= s.max {
		return false
	}
	s.n[key]++
	return true
}

func (s *sourceCount) remove(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := source(a)
	if s.n[key]--; s.n[key] <= 0 {
		delete(s.n, key)
	}
}
