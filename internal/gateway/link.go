package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// linkRetry and maxLinkRetry bound the jittered wait between attempts to
	// reach another gateway: until it is there, its nodes are not reached from
	// here, and there are few of them to ask.
	linkRetry    = 250 * time.Millisecond
	maxLinkRetry = 5 * time.Second
)

// errSelf: the gateway that was reached is this process.
var errSelf = errors.New("this gateway itself")

// keepLink keeps a connection to the gateway of that ID until ctx ends.
func (g *Gateway) keepLink(ctx context.Context, id string) {
	for try := 0; ; try++ {
		began := time.Now()
		err := g.dialLink(ctx, id)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errSelf) {
			return
		}
		if time.Since(began) > maxLinkRetry {
			try = 0
		}
		wait := rand.N(min(maxLinkRetry, linkRetry<<min(try, 5)))
		g.cfg.Logger.Warn("no connection to the other gateway", "gateway", id, "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// dialLink makes a connection to a gateway and runs it to its end.
func (g *Gateway) dialLink(ctx context.Context, id string) error {
	g.mu.Lock()
	peer, ok := g.members.list.Find(id)
	g.mu.Unlock()
	if !ok {
		return fmt.Errorf("gateway %s is not in the list any more", id)
	}
	var errs []error
	for _, addr := range peer.Addresses {
		err := g.dialLinkAddress(ctx, id, addr)
		if err == nil || errors.Is(err, errSelf) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return errors.Join(errs...)
}

func (g *Gateway) dialLinkAddress(ctx context.Context, id, addr string) (err error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return err
	}
	pc, err := g.cfg.ListenPeer()
	if err != nil {
		return fmt.Errorf("open UDP socket: %w", err)
	}
	tr := &quic.Transport{Conn: tunnel.WrapPacketConn(pc, &g.lost)}
	defer func() {
		cerr := pc.Close()
		if errors.Is(cerr, net.ErrClosed) {
			cerr = nil
		}
		err = errors.Join(err, tr.Close(), cerr)
	}()
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: g.cfg.ClientCAs, ServerName: tunnel.ServerName,
		NextProtos:           []string{tunnel.MeshALPN},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return g.cfg.Certificate() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := tunnel.GatewayID(cs.PeerCertificates[0]); got != id {
				return fmt.Errorf("gateway %s was dialled and %q answered", id, got)
			}
			return nil
		},
	}
	qconf := tunnel.MeshConfig()
	if err := g.cfg.Congestion.Set(qconf); err != nil {
		return err
	}
	qc, err := tr.Dial(ctx, to, conf, qconf)
	if err != nil {
		return err
	}
	sess := tunnel.NewQUICSession(qc)
	defer sess.Close(tunnel.CloseGoingAway, "gateway stops")
	st, err := sess.Open()
	if err != nil {
		return err
	}
	return g.runLink(ctx, sess, st, linkTo{id: id, dialled: true})
}

// serveMesh runs a connection that another gateway made.
func (g *Gateway) serveMesh(ctx context.Context, sess tunnel.Session, chain []*x509.Certificate) {
	log := g.cfg.Logger.With("remote", sess.Remote())
	var id string
	code, err := tunnel.CloseDenied, errors.New("no gateway's certificate")
	if len(chain) > 0 && isGateway(chain[0]) {
		id = tunnel.GatewayID(chain[0])
		code, err = g.admitGateway(id)
	}
	if err != nil {
		log.Warn("mesh connection refused", "gateway", id, "error", err)
		sess.Close(code, err.Error())
		return
	}
	defer g.dismissGateway(id)
	hctx, cancel := context.WithTimeout(ctx, tunnel.HelloTimeout)
	st, err := sess.Accept(hctx)
	cancel()
	if err == nil {
		err = g.runLink(ctx, sess, st, linkTo{id: id})
	}
	if ctx.Err() == nil && !errors.Is(err, errSelf) {
		log.Info("mesh connection ended", "gateway", id, "reason", err)
	}
}

// admitGateway counts a connection that a gateway has made, or says why that may
// not be: it is not in the list, or has too many.
func (g *Gateway) admitGateway(id string) (tunnel.CloseCode, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members.list == nil {
		return tunnel.CloseDenied, errors.New("this gateway has no list of gateways")
	}
	if _, ok := g.members.list.Find(id); !ok {
		return tunnel.CloseDenied, fmt.Errorf("gateway %q is not in the cluster's list", id)
	}
	if made := g.peers[id]; made >= maxLinks {
		return tunnel.CloseRateLimited, fmt.Errorf("gateway %s has %d connections to this one already", id, made)
	}
	g.peers[id]++
	return 0, nil
}

// dismissGateway is called when a connection that was admitted has ended.
func (g *Gateway) dismissGateway(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.peers[id]--; g.peers[id] == 0 {
		delete(g.peers, id)
	}
}

// linkTo is whom a link is with, and who made it.
type linkTo struct {
	id      string
	dialled bool
}

// runLink runs a connection to another gateway until it ends.
func (g *Gateway) runLink(ctx context.Context, sess tunnel.Session, st tunnel.Stream, to linkTo) error {
	limit := int64(tunnel.GatewayStallLimit) // ServePacket gives every connection GatewayConfig
	if to.dialled {
		limit = tunnel.MeshStallLimit
	}
	l := &link{
		stalls: tunnel.NewStalls(limit, g.stalled),
		id:     to.id, dialled: to.dialled, sess: sess, control: tunnel.NewControl(st), wake: make(chan struct{}, 1),
		holds: map[string]*holding{}, dirty: map[string]struct{}{},
	}
	if err := l.control.Send(g.meshHello()); err != nil {
		return err
	}
	if err := l.control.SetReadDeadline(time.Now().Add(tunnel.HelloTimeout)); err != nil {
		return err
	}
	m, err := l.control.Receive()
	if err != nil {
		return err
	}
	hello, ok := m.(tunnel.MeshHello)
	switch {
	case !ok || hello.Version < 1:
		err := fmt.Errorf("control message %d came first, want MESH-HELLO", m.Type())
		sess.Close(tunnel.CloseProtocol, err.Error())
		return err
	case hello.Process == g.id:
		if !to.dialled {
			// The end that dialled takes note and closes.
			select {
			case <-sess.Done():
			case <-time.After(tunnel.HelloTimeout):
			case <-ctx.Done():
			}
		}
		sess.Close(tunnel.CloseNormal, errSelf.Error())
		return errSelf
	}
	if err := l.control.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	l.process, l.draining = hello.Process, hello.Draining
	snapshot, err := g.linkUp(l)
	if err != nil {
		return err
	}
	defer g.linkDown(l)
	g.cfg.Logger.Info("mesh connection", "gateway", to.id, "remote", sess.Remote(), "process", l.process)

	var wg sync.WaitGroup
	defer wg.Wait()
	defer sess.Close(tunnel.CloseGoingAway, "gateway stops")
	wg.Go(func() { l.fail(g.say(ctx, l, snapshot)) })
	wg.Go(func() { l.fail(g.hear(l)) })
	for {
		st, err := sess.Accept(ctx)
		if err != nil {
			return err
		}
		wg.Go(func() { g.serveForward(ctx, l, st) })
	}
}

// fail ends a link whose control stream does not work.
func (l *link) fail(err error) {
	if err != nil && l.sess.Err() == nil {
		l.sess.Close(tunnel.CloseProtocol, err.Error())
	}
}

func (g *Gateway) meshHello() tunnel.MeshHello {
	return tunnel.MeshHello{Version: tunnel.Version, Process: g.id, Draining: g.isDraining()}
}

// linkUp makes l known and returns what the other end has to be told first.
func (g *Gateway) linkUp(l *link) (snapshot []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, ErrClosed
	}
	g.links[l] = struct{}{}
	for node := range g.current {
		snapshot = append(snapshot, node)
	}
	return snapshot, nil
}

func (g *Gateway) linkDown(l *link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.links, l)
	g.forgetLocked(l)
}

// say tells the other end what we hold, first everything and then what changes.
func (g *Gateway) say(ctx context.Context, l *link, nodes []string) error {
	owned := tunnel.Owned{Snapshot: true}
	for {
		for first := true; first && owned.Snapshot || len(nodes) > 0; first = false {
			n := min(len(nodes), tunnel.MaxOwned)
			owned.Sessions = g.owned(nodes[:n])
			nodes = nodes[n:]
			if err := l.control.Send(owned); err != nil {
				return err
			}
			owned = tunnel.Owned{}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.sess.Done():
			return nil
		case <-l.wake:
		}
		g.mu.Lock()
		dirty, kicks, hello := l.dirty, l.kicks, l.hello
		l.dirty, l.kicks, l.hello = map[string]struct{}{}, nil, false
		g.mu.Unlock()
		if hello {
			if err := l.control.Send(g.meshHello()); err != nil {
				return err
			}
		}
		for _, k := range kicks {
			if err := l.control.Send(k); err != nil {
				return err
			}
		}
		for node := range dirty {
			nodes = append(nodes, node)
		}
	}
}

// owned says which epoch of each node is here.
func (g *Gateway) owned(nodes []string) []tunnel.OwnedSession {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]tunnel.OwnedSession, len(nodes))
	for i, node := range nodes {
		out[i].Node = node
		if s := g.current[node]; s != nil {
			out[i].Epoch = s.epoch
		}
	}
	return out
}

// hear takes in what the other end says.
func (g *Gateway) hear(l *link) error {
	for {
		m, err := l.control.Receive()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case tunnel.Owned:
			if err := g.heard(l, m); err != nil {
				return err
			}
			g.events.room(l.sess.Done())
		case tunnel.Kick:
			g.kick(m.Node, m.Reason)
		case tunnel.MeshHello:
			g.mu.Lock()
			l.draining = m.Draining
			g.mu.Unlock()
		default:
			return fmt.Errorf("control message %d out of place", m.Type())
		}
	}
}

// serveForward carries a dial that came to another gateway to a node of ours.
func (g *Gateway) serveForward(ctx context.Context, l *link, st tunnel.Stream) {
	l.streams.Add()
	defer l.streams.Done()
	g.dials.Add()
	defer g.dials.Done()
	_ = st.SetReadDeadline(time.Now().Add(tunnel.HelloTimeout))
	f, err := tunnel.ReadForward(st)
	if err != nil {
		st.Reset(tunnel.ResetProtocol)
		return
	}
	h, err := tunnel.AcceptDial(st)
	a := g.audit("gateway "+l.id, h.Kind.String(), h.Target)
	a.node, a.trace = f.Node, h.Trace
	if h.Target == "" {
		a.target = h.Kind.String()
	}
	if err != nil {
		a.end(tunnel.Spliced{Err: err})
		return
	}
	if h.Kind == tunnel.KindAPIServer {
		err := &tunnel.StatusError{Status: tunnel.StatusDenied, Text: "a gateway has its own way to the apiserver"}
		tunnel.Refuse(st, tunnel.Response{Status: err.Status, Text: err.Text})
		a.end(tunnel.Spliced{Err: err})
		return
	}
	opening, cancel := bounded(ctx)
	d, w, err := g.openHeader(opening, f.Node, h, f.Hops)
	cancel()
	if err != nil {
		tunnel.Refuse(st, forwardFailure(err))
		a.end(tunnel.Spliced{Err: err})
		return
	}
	defer w.end()
	a.over = w.over
	// The node's answer is the first that comes back: it goes through as it is.
	a.end(tunnel.Splice(st, d.Stream, tunnel.SpliceOptions{Stalls: w.stalls, StallsA: l.stalls}))
}

// forwardFailure is the answer to another gateway.
func forwardFailure(err error) tunnel.Response {
	r := tunnel.Response{Status: tunnel.StatusUnreachable, Text: err.Error()}
	switch {
	case errors.Is(err, ErrNotConnected), errors.Is(err, ErrClosed):
		r.Status = tunnel.StatusNotConnected
	case errors.Is(err, ErrDraining):
		r.Status = tunnel.StatusDraining
	}
	return r
}
