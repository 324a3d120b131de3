package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// acceptPause after a failed accept (file descriptors ran out) keeps the loop
// from spinning.
const acceptPause = 100 * time.Millisecond

// podDialTimeout bounds opening a pod's stream. It is longer than the tunnel takes at
// the most, with the seconds it may wait for a session, so that what the gateway says
// comes first.
const podDialTimeout = tunnel.GatewayDialTimeout + 8*time.Second

// ServePods carries every connection of the listener to the apiserver and back,
// byte for byte: pods speak TLS with the apiserver itself and show it their own
// tokens. An end of stream in one direction is passed on while the other goes on
// (half-close); a failure in either resets both, so that a break never looks
// like an end. Where the tunnel is down the pod is answered by the node itself
// (see podServer), or, where that is not set up, reset at once. So is what is too
// much (see podConnections), and what nobody reads while others need what it holds
// (see tunnel.Stalls).
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
		if pod, ok := h.pods.admit(pod); ok {
			connections.Go(func() { h.carry(ctx, pod, here) })
		}
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
	online, carrying := ctx, ctx
	if here != nil {
		var ok bool
		if online, ok = h.local.link.Online(); !ok {
			here.give(pod)
			return
		}
		var cancel context.CancelFunc
		carrying, cancel = context.WithCancel(ctx)
		defer cancel()
		// What goes over a link that is cut is over.
		defer context.AfterFunc(online, cancel)()
	}
	dialing, cancel := context.WithTimeout(carrying, podDialTimeout)
	upstream, err := h.config.DialUpstream(dialing)
	cancel()
	if err != nil {
		h.log.Debug("dial the apiserver for a pod", "remote", pod.RemoteAddr().String(), "error", err)
		switch refused := (*tunnel.StatusError)(nil); {
		case errors.Is(err, tunnel.ErrStreamLimit):
			h.pods.refuse(pod, err)
		case here == nil, ctx.Err() != nil, errors.As(err, &refused):
			// A gateway that answers is no sign of a cut: whether the apiserver
			// answers too, the link's own probes find out.
			tunnel.Abort(pod)
		case online.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			// Nobody said anything, perhaps because the dial alone is slow: one pod
			// is no reason to cut off all that is open.
			tunnel.Abort(pod)
			h.local.link.Doubt()
		default:
			if online.Err() == nil {
				h.local.link.Failed(err)
			}
			here.give(pod)
		}
		return
	}
	defer context.AfterFunc(carrying, func() {
		tunnel.Abort(pod)
		tunnel.Abort(upstream)
	})()
	var options tunnel.SpliceOptions
	if s, ok := upstream.(watchedStream); ok {
		options.Stalls = s.Stalls()
	}
	out := tunnel.Splice(pod, upstream, options)
	if errors.Is(out.Err, tunnel.ErrStalled) {
		h.log.Warn("cut a pod's connection to the apiserver", "remote", pod.RemoteAddr().String(), "error", out.Err)
	}
}
