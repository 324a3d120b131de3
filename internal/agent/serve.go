package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// serve carries one connection that the gateway opened.
func (a *Agent) serve(ctx context.Context, s *session, st tunnel.Stream) {
	h, err := tunnel.AcceptDial(st)
	log := a.log.With("gateway", s.gateway, "id", s.id)
	if err != nil {
		log.Warn("dial not understood", "error", err)
		return
	}
	log = log.With("kind", h.Kind.String(), "target", h.Target, "trace", h.Trace)
	timeout := tunnel.AgentDialTimeout
	if h.Deadline > 0 {
		timeout = min(timeout, h.Deadline)
	}
	dctx, cancel := context.WithTimeout(ctx, timeout)
	c, err := a.dial(dctx, h)
	cancel()
	if err != nil {
		// A line for each refusal: who aims where it may not is seen on the node.
		r := tunnel.DialFailure(err)
		log.Warn("dial failed", "status", r.Status.String(), "error", err)
		a.counters.dialled(h.Kind, r.Err())
		tunnel.Refuse(st, r)
		return
	}
	if err := tunnel.Respond(st, tunnel.Response{Status: tunnel.StatusOK}); err != nil {
		st.Reset(tunnel.ResetAborted)
		_ = c.Close() // nothing was carried
		a.counters.dialled(h.Kind, err)
		return
	}
	out := tunnel.Splice(st, c, tunnel.SpliceOptions{Stalls: s.stalls})
	a.counters.dialled(h.Kind, out.Err)
	log.Debug("carried", "received", out.AToB, "sent", out.BToA, "error", out.Err)
}

// dial reaches what the header asks for, if this node allows it.
func (a *Agent) dial(ctx context.Context, h tunnel.Header) (net.Conn, error) {
	switch h.Kind {
	case tunnel.KindKubelet:
		c, err := a.cfg.DialKubelet(ctx)
		if err != nil {
			return nil, fmt.Errorf("kubelet of node %s: %w", a.cfg.NodeName, err)
		}
		return c, nil
	case tunnel.KindTCP:
		addr, err := netip.ParseAddrPort(h.Target)
		if err != nil {
			return nil, fmt.Errorf("target: %w", err)
		}
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		if addr.Addr().Zone() != "" {
			return nil, &tunnel.StatusError{Status: tunnel.StatusDenied, Text: "addresses with a zone are not carried"}
		}
		if !a.dir.currentPolicy().Allows(signed.TCP, addr) {
			if err := a.cfg.AllowTCP(addr); err != nil {
				return nil, &tunnel.StatusError{Status: tunnel.StatusDenied, Text: fmt.Sprintf("node %s: %s: %v", a.cfg.NodeName, addr, err)}
			}
		}
		c, err := a.cfg.DialTCP(ctx, addr)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", a.cfg.NodeName, err)
		}
		return c, nil
	default:
		return nil, &tunnel.StatusError{Status: tunnel.StatusDenied, Text: fmt.Sprintf("node %s does not serve kind %s", a.cfg.NodeName, h.Kind)}
	}
}
