package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxPodConnections bounds what pods can make the hub hold. A pod's client
	// keeps one connection; a node has at most a few hundred pods.
	maxPodConnections = 4096
	// acceptPause after a failed accept (file descriptors ran out) keeps the
	// loop from spinning.
	acceptPause = 100 * time.Millisecond
)

// ServePods carries every connection of the listener to the apiserver and back,
// byte for byte: pods speak TLS with the apiserver itself and show it their own
// tokens. An end of stream in one direction is passed on while the other goes on
// (half-close); a failure in either resets both, so that a break never looks
// like an end. Where the tunnel is down the pod is answered by the node itself
// (see podServer), or, where that is not set up, reset at once.
//
// It returns nil once ctx is done, with listener and every connection closed.
func (h *Hub) ServePods(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()

	var connections sync.WaitGroup
	defer connections.Wait()
	var here *handOff // nil: pods are answered by the apiserver only
	if h.local != nil {
		here = newHandOff(listener.Addr())
		defer here.Close()
		connections.Go(func() {
			if err := h.local.pods.serve(ctx, here); err != nil {
				h.log.Error("answer pods on the node", "error", err)
			}
		})
	}
	defer cancel()
	room := make(chan struct{}, maxPodConnections)
	for {
		pod, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				pod.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("hub of node %s: serve pods on %s: %w", h.config.NodeName, listener.Addr(), err)
		}
		if err != nil {
			h.log.Warn("accept a pod's connection", "address", listener.Addr().String(), "error", err)
			if !h.pause(ctx, acceptPause) {
				return nil
			}
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			h.log.Warn("refused a pod's connection: too many are open", "limit", maxPodConnections, "remote", pod.RemoteAddr().String())
			reset(pod)
			continue
		}
		connections.Go(func() {
			defer func() { <-room }()
			h.carry(ctx, pod, here)
		})
	}
}

// pause waits on the hub's clock; false once ctx is done.
func (h *Hub) pause(ctx context.Context, d time.Duration) bool {
	over := make(chan struct{})
	timer := h.clock.AfterFunc(d, func() { close(over) })
	defer timer.Stop()
	select {
	case <-over:
		return true
	case <-ctx.Done():
		return false
	}
}

// carry joins one pod's connection to a new one upstream until both directions
// have ended or ctx is done. Where there is none to be had it is handed over to
// be answered here, if anybody does.
func (h *Hub) carry(ctx context.Context, pod net.Conn, here *handOff) {
	if here != nil {
		online, ok := h.local.link.Online()
		if !ok {
			here.give(pod)
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		// What goes over a link that is cut is over.
		defer context.AfterFunc(online, cancel)()
	}
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	upstream, err := h.config.DialUpstream(dialing)
	cancel()
	if err != nil {
		h.log.Debug("carry a pod's connection", "remote", pod.RemoteAddr().String(), "error", err)
		if here != nil {
			here.give(pod)
			return
		}
		reset(pod)
		return
	}
	defer upstream.Close()
	defer pod.Close()

	abort := sync.OnceFunc(func() {
		upstream.Close()
		reset(pod)
	})
	defer context.AfterFunc(ctx, abort)()

	var directions sync.WaitGroup
	directions.Go(func() { pipe(upstream, pod, abort) })
	directions.Go(func() { pipe(pod, upstream, abort) })
	directions.Wait()
}

// pipe copies one direction and passes its end on.
func pipe(to, from net.Conn, abort func()) {
	if _, err := io.Copy(to, from); err != nil {
		abort()
		return
	}
	half, ok := to.(interface{ CloseWrite() error })
	if !ok {
		// It cannot say that it has no more to send but by closing.
		abort()
		return
	}
	if err := half.CloseWrite(); err != nil {
		abort()
	}
}

// reset closes a connection so that its peer sees a reset where the transport
// knows one, not an orderly end.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		// Best effort: closing follows in any case.
		_ = tcp.SetLinger(0)
	}
	c.Close()
}
