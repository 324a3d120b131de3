package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// Config is what an agent needs from its surroundings.
type Config struct {
	// Gateways are "host:port" of UDP sockets: where to go until the agent has a
	// signed list, and after all of that. Tried in order. Required.
	Gateways []string
	// RootCAs sign the gateways' certificates. Required.
	RootCAs *x509.CertPool
	// CA signs the list of gateways and this node's policy; nil: the agent
	// believes neither.
	CA *x509.Certificate
	// Documents keeps the two; nil: they are gone with the process.
	Documents Documents
	// Certificate returns the node's client certificate; asked at each
	// handshake, so that a renewed one is used from the next connection on.
	// Required.
	Certificate func() (*tls.Certificate, error)
	// NodeName is the name in that certificate. Required.
	NodeName string
	// Info is told to the gateway.
	Info Info
	// DialKubelet connects to this node's kubelet. Required.
	DialKubelet func(ctx context.Context) (net.Conn, error)
	// AllowTCP is asked about every other target that the signed policy does not
	// allow: what this node was told on the node itself. Its error is sent to the
	// gateway. nil allows none.
	AllowTCP func(netip.AddrPort) error
	// DialTCP connects to an allowed target; nil: a plain dialer.
	DialTCP func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// OnState is told, one call at a time, when a session begins (a move to
	// another gateway too) and when there is none any more. It must not block.
	// May be nil.
	OnState func(connected bool, gateway string)
	// Heartbeat says how the node is; asked for every tunnel.HeartbeatInterval of
	// a session, at its begin and after a Beat. It must not block. nil: the
	// gateway is told nothing, and nothing in the cloud speaks for the kubelet.
	Heartbeat func() tunnel.Heartbeat
	// ListenPacket makes the UDP socket of one connection; nil: any port of every
	// address, of the family of the gateway's address.
	ListenPacket func() (net.PacketConn, error)
	// Congestion is how what is sent to gateways answers loss; empty: the default.
	Congestion tunnel.Congestion
	// DialStream opens the TCP connection of a session; nil: a plain dialer.
	DialStream func(ctx context.Context, network, addr string) (net.Conn, error)
	// Proxy is the HTTP proxy for TCP sessions to a gateway ("host:port"), nil
	// for none; see ProxyFromEnvironment. A gateway that the proxy does not lead to
	// is tried without it. QUIC takes none.
	Proxy func(hostport string) (*url.URL, error)
	// Transport of sessions, from the first on; SetTransport changes it. "": Auto.
	Transport Transport
	// Network says which network the node is on, so that the agent remembers
	// there what got through; nil: it is always the same.
	Network func() Network
	// Addresses are the node's own; nil: net.InterfaceAddrs.
	Addresses func() ([]net.Addr, error)
	// Logger; nil: slog.Default.
	Logger *slog.Logger
	// Jitter returns a duration in [0, max); nil: uniformly random.
	Jitter func(max time.Duration) time.Duration
}

// Info describes the node to the gateway. Nothing is decided by it.
type Info struct {
	EngineVersion string
	Architecture  string // a GOARCH
	BootID        string
}

// ErrNotConnected: there is no session to a gateway.
var ErrNotConnected = errors.New("not connected to a gateway")

const (
	// sessionWait is how long after losing its session the agent still lets
	// DialAPIServer wait for the next one: reconnecting takes about a second
	// where the path is back. After that callers are told at once, so that they
	// turn to what they have.
	sessionWait = 5 * time.Second
	// pokePings: after an address change the gateway learns of
	// the new path from the first packet that arrives on it, so some are sent. A
	// network that has just changed may take seconds to carry anything, and what
	// comes after that should not wait: 24 packets of 70 bytes. The first are sent
	// pokeSoon after each other, for most networks that carry nothing yet when they
	// tell of a change do so within moments.
	pokePings    = 24
	pokesSoon    = 5
	pokeSoon     = 50 * time.Millisecond
	pokeInterval = 250 * time.Millisecond
)

// Agent is the edge end of the tunnel. Make it with New and call Run once.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	dir      *directory
	net      dialer
	mem      networks
	counters *counters
	history  *tunnel.History
	begun    uint64 // sessions so far; Run's

	poke  chan struct{} // ends a wait between attempts
	remix chan struct{} // the transport was changed

	stateMu sync.Mutex // held while OnState runs, so that its calls are in order

	mu      sync.Mutex    // guards all below
	session *session      // the newest, which new connections use
	changed chan struct{} // closed and replaced when session changes
	lostAt  time.Time     // when the session was lost, or Run began
	epoch   uint64        // of the newest session there was
	running bool
	mode    Transport
	proven  bool  // a session over mode was made, or mode was there from the start
	trouble error // why the last attempt at a session that should be there failed
}

// New makes an agent that is not connected yet.
func New(cfg Config) (*Agent, error) {
	switch {
	case len(cfg.Gateways) == 0:
		return nil, errors.New("agent: no Gateways")
	case cfg.RootCAs == nil:
		return nil, errors.New("agent: no RootCAs")
	case cfg.Certificate == nil:
		return nil, errors.New("agent: no Certificate")
	case cfg.NodeName == "":
		return nil, errors.New("agent: no NodeName")
	case cfg.DialKubelet == nil:
		return nil, errors.New("agent: no DialKubelet")
	}
	if mode, err := ParseTransport(string(cfg.Transport)); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	} else {
		cfg.Transport = mode
	}
	for _, gw := range cfg.Gateways {
		if _, _, err := net.SplitHostPort(gw); err != nil {
			return nil, fmt.Errorf("agent: gateway %q: %w", gw, err)
		}
	}
	if cfg.AllowTCP == nil {
		cfg.AllowTCP = func(netip.AddrPort) error { return errors.New("not in what this node allows") }
	}
	if cfg.DialTCP == nil {
		cfg.DialTCP = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr.String())
		}
	}
	if cfg.Addresses == nil {
		cfg.Addresses = net.InterfaceAddrs
	}
	if cfg.Network == nil {
		cfg.Network = func() Network { return Network{} }
	}
	if cfg.OnState == nil {
		cfg.OnState = func(bool, string) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Jitter == nil {
		cfg.Jitter = func(max time.Duration) time.Duration { return rand.N(max) }
	}
	count := newCounters()
	a := &Agent{
		cfg: cfg, log: cfg.Logger.With("node", cfg.NodeName), counters: count,
		dir:     &directory{node: cfg.NodeName, ca: cfg.CA, seeds: cfg.Gateways, keep: cfg.Documents},
		history: tunnel.NewHistory(time.Now),
		net:     dialer{listen: cfg.ListenPacket, stream: cfg.DialStream, proxy: cfg.Proxy, congestion: cfg.Congestion, lost: &count.lost},
		mem:     networks{keep: cfg.Documents},
		poke:    make(chan struct{}, 1), remix: make(chan struct{}, 1), changed: make(chan struct{}),
		mode: cfg.Transport, proven: true,
	}
	if err := a.mem.load(); err != nil {
		// It is found out anew, at the price of a second per network.
		a.log.Warn("what got through on which network is not known any more", "error", err)
	}
	if err := a.dir.load(); err != nil {
		// A gateway brings them anew, signed; until then there are the seeds.
		a.log.Warn("documents of earlier sessions are not used", "error", err)
	}
	return a, nil
}

// Connected reports whether a session is up, and to which gateway.
func (a *Agent) Connected() (gateway string, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session == nil {
		return "", false
	}
	return a.session.gateway, true
}

// Poke says that the network may have changed (an address, a route, a resume
// from sleep). A waiting agent tries at once; a connected one makes the new path
// known to its gateway. It returns at once.
func (a *Agent) Poke() {
	a.mu.Lock()
	s := a.session
	a.mu.Unlock()
	ch, number := a.poke, uint64(0)
	if s != nil {
		ch, number = s.poke, s.number
	}
	a.history.Add(number, tunnel.EventNetwork, "may have changed")
	select {
	case ch <- struct{}{}:
	default:
	}
}

// SetTransport changes what carries sessions, the current one too: where it has
// another transport, a session with the right one takes over as soon as it can
// be made, and the streams of the old one end by themselves. A transport that
// never gets through costs no session: until there has been one over it, the
// agent also takes the other one, and Figures has the Trouble. It returns at once.
func (a *Agent) SetTransport(t Transport) {
	a.mu.Lock()
	if a.mode != t {
		a.mode, a.trouble = t, nil
		a.proven = t == Auto || a.session != nil && a.session.sess.transport == t
		a.history.Add(0, tunnel.EventTransport, string(t)+" is wanted")
	}
	a.mu.Unlock()
	select {
	case a.remix <- struct{}{}:
	default:
	}
}

// Carrier is what carries the session: QUIC or TCP; "" without one.
func (a *Agent) Carrier() Transport {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session == nil {
		return ""
	}
	return a.session.sess.transport
}

func (a *Agent) transport() Transport {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mode
}

// route is how to reach a gateway on a network where first got through last.
func (a *Agent) route(first Transport) route {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.mode == Auto:
		return route{transport: Auto, first: first}
	case a.proven:
		return route{transport: a.mode}
	}
	return route{transport: Auto, first: a.mode}
}

// troubled keeps why there is no session over mode, and reports whether it is
// the first trouble with it.
func (a *Agent) troubled(mode Transport, err error) (first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mode != mode {
		return false
	}
	first, a.trouble = a.trouble == nil, err
	return first
}

// Beat says that what Heartbeat returns has changed: the gateway is told at
// once. It returns at once; without a session the next one begins with it.
func (a *Agent) Beat() {
	a.mu.Lock()
	s := a.session
	a.mu.Unlock()
	if s == nil {
		return
	}
	select {
	case s.beat <- struct{}{}:
	default:
	}
}

// DialAPIServer opens a connection to the apiserver through the session. Without
// one it waits for it if it was lost in the last few seconds, and fails with
// ErrNotConnected otherwise. Once connected it takes no longer than
// tunnel.GatewayDialTimeout, from opening a stream to the gateway's answer. The
// connection is a tunnel.Stream with a method Stalls, which returns what watches over
// its session's.
func (a *Agent) DialAPIServer(ctx context.Context) (net.Conn, error) {
	c, err := a.dialAPIServer(ctx)
	a.counters.dialled(tunnel.KindAPIServer, err)
	return c, err
}

func (a *Agent) dialAPIServer(ctx context.Context) (net.Conn, error) {
	s, err := a.await(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial apiserver: %w", err)
	}
	h := tunnel.Header{Kind: tunnel.KindAPIServer, Trace: rand.Uint64N(1 << 62), Deadline: tunnel.AgentDialTimeout}
	ctx, cancel := context.WithTimeoutCause(ctx, tunnel.GatewayDialTimeout,
		fmt.Errorf("no answer within %s: %w", tunnel.GatewayDialTimeout, context.DeadlineExceeded))
	defer cancel()
	s.streams.Add()
	d, err := tunnel.OpenDialContext(ctx, s.sess.Session, h)
	if err != nil {
		s.streams.Done()
		return nil, fmt.Errorf("dial apiserver through gateway %s: %w", s.gateway, err)
	}
	if err := d.Await(ctx); err != nil {
		s.streams.Done()
		return nil, fmt.Errorf("dial apiserver through gateway %s: %w", s.gateway, err)
	}
	return &countedStream{Stream: d, stalls: s.stalls, done: sync.OnceFunc(s.streams.Done)}, nil
}

// countedStream tells its session when it is over.
type countedStream struct {
	tunnel.Stream
	stalls *tunnel.Stalls
	done   func()
}

// Stalls looks after the streams of its session: whoever copies from it to
// somebody who may not read must do so under its watch (see tunnel.SpliceOptions).
func (c *countedStream) Stalls() *tunnel.Stalls { return c.stalls }

// Close implements net.Conn.
func (c *countedStream) Close() error {
	defer c.done()
	return c.Stream.Close()
}

// Reset implements tunnel.Stream.
func (c *countedStream) Reset(code tunnel.ResetCode) {
	defer c.done()
	c.Stream.Reset(code)
}

// await returns the session, or waits for it as DialAPIServer says.
func (a *Agent) await(ctx context.Context) (*session, error) {
	a.mu.Lock()
	wait := time.Until(a.lostAt.Add(sessionWait))
	running := a.running
	a.mu.Unlock()
	var expired <-chan time.Time
	if running && wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		expired = t.C
	}
	for {
		a.mu.Lock()
		s, changed := a.session, a.changed
		a.mu.Unlock()
		if s != nil {
			return s, nil
		}
		if expired == nil {
			return nil, ErrNotConnected
		}
		select {
		case <-changed:
		case <-expired:
			return nil, ErrNotConnected
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrNotConnected, ctx.Err())
		}
	}
}

// adopt makes s the session and returns the one it replaces.
func (a *Agent) adopt(s *session) (old *session) {
	a.stateMu.Lock()
	defer a.stateMu.Unlock()
	a.mu.Lock()
	old = a.session
	a.session = s
	a.epoch = max(a.epoch, s.welcome.Epoch)
	a.trouble = nil
	if s.sess.transport == a.mode {
		a.proven = true
	}
	a.announceLocked()
	a.mu.Unlock()
	a.cfg.OnState(true, s.gateway)
	return old
}

// lost is called when s has ended, whether it was the session or not.
func (a *Agent) lost(s *session) {
	a.stateMu.Lock()
	defer a.stateMu.Unlock()
	a.mu.Lock()
	current := a.session == s
	if current {
		a.session, a.lostAt = nil, time.Now()
		a.announceLocked()
	}
	a.mu.Unlock()
	if current {
		a.cfg.OnState(false, s.gateway)
	}
}

func (a *Agent) announceLocked() {
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Agent) lastEpoch() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.epoch
}
