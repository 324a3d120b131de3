package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// maxAddresses is how many addresses of one gateway name are tried: each costs
	// up to a handshake timeout (5 s).
	maxAddresses = 4
	// headStart is what QUIC gets before TCP is tried too: a handshake on most
	// paths, so that a node with UDP opens one connection and not two.
	headStart = 250 * time.Millisecond
	// quicPatience is how long, from the beginning, a TCP connection that is ready
	// waits for QUIC: two retransmissions of a first packet that was lost. Where
	// UDP is blocked it is what that costs, once per network.
	quicPatience = time.Second
	// knownStart is headStart on a network where QUIC was what got through last: it is
	// late rather than blocked, where many nodes return at once. Where it is blocked
	// now, TCP is ready about when quicPatience ends, as it would be with headStart.
	knownStart = 750 * time.Millisecond
	// directStart is what the proxy gets before TCP is tried without it too: an
	// environment often names one that is for another purpose, cannot be reached
	// from the node or knows nothing of its gateway.
	directStart = 500 * time.Millisecond
	// heardStart is headStart once the gateway has answered anything over UDP: the
	// path is good then and the gateway busy, to which a handshake over TCP beside
	// it would only add. A path that takes small packets and no large ones is why
	// it ends.
	heardStart = 2500 * time.Millisecond
)

// Transport is what carries a session.
type Transport string

// The transports. Auto: QUIC where it gets through, else TCP.
const (
	Auto Transport = "auto"
	QUIC Transport = "quic"
	TCP  Transport = "tcp"
)

// ParseTransport reads the name of a transport; "" is Auto.
func ParseTransport(s string) (Transport, error) {
	switch t := Transport(s); t {
	case "":
		return Auto, nil
	case Auto, QUIC, TCP:
		return t, nil
	}
	return "", fmt.Errorf("transport %q is none of %s, %s, %s", s, Auto, QUIC, TCP)
}

// link is a session and what it alone uses.
type link struct {
	tunnel.Session
	transport Transport // QUIC or TCP
	state     tls.ConnectionState
	local     netip.Addr                                    // of a connection: it lives and dies with it
	stats     func() uint64                                 // packets received so far; nil for TCP
	roam      func(ctx context.Context, nudge func()) error // to another socket; nil for TCP
	free      func() error
}

// release frees the socket; the session must have been closed.
func (l *link) release() error { return l.free() }

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// dialer makes links to gateways.
type dialer struct {
	// listen makes the UDP socket of one connection; nil: any port.
	listen func() (net.PacketConn, error)
	// stream opens a TCP connection; nil: a plain dialer.
	stream func(ctx context.Context, network, addr string) (net.Conn, error)
	// proxy is the HTTP proxy for TCP to an address; nil: none.
	proxy func(hostport string) (*url.URL, error)
	// congestion of QUIC; the kernel has its own for TCP.
	congestion tunnel.Congestion
	// lost counts what send errors lose.
	lost *tunnel.SendErrors
}

// route is how a gateway is to be reached this time.
type route struct {
	transport Transport
	// first of Auto is what worked on this network last; "": not known.
	first Transport
	// budget bounds the dial up to the end of the handshake; 0: nothing does but
	// what bounds each transport's.
	budget time.Duration
}

// dial resolves "host:port" and makes a link to the first address that answers.
func (d *dialer) dial(ctx context.Context, gateway string, conf *tls.Config, r route) (*link, error) {
	if r.budget > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.budget)
		defer cancel()
	}
	proxy, err := d.proxyFor(gateway)
	if err != nil {
		return nil, err
	}
	addrs, err := resolve(ctx, gateway)
	if err != nil {
		if proxy == nil || r.transport == QUIC {
			return nil, err
		}
		// Behind a proxy, names of the world outside may be the proxy's alone.
		l, terr := d.dialTCP(ctx, gateway, proxy, conf)
		if terr != nil {
			return nil, errors.Join(err, terr)
		}
		return l, nil
	}
	var errs []error
	for _, addr := range addrs {
		l, err := d.dialAddr(ctx, gateway, addr, proxy, conf, r)
		if err == nil {
			return l, nil
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (d *dialer) proxyFor(gateway string) (*url.URL, error) {
	if d.proxy == nil {
		return nil, nil
	}
	return d.proxy(gateway)
}

func (d *dialer) dialAddr(ctx context.Context, gateway string, addr netip.AddrPort, proxy *url.URL, conf *tls.Config, r route) (*link, error) {
	var heard atomic.Bool
	quic := func(ctx context.Context) (*link, error) { return d.dialQUIC(ctx, addr, conf, &heard) }
	tcp := func(ctx context.Context) (*link, error) { return d.dialTCP(ctx, addr.String(), nil, conf) }
	if proxy != nil {
		// The proxy knows the gateway by the name it was configured with.
		through := func(ctx context.Context) (*link, error) { return d.dialTCP(ctx, gateway, proxy, conf) }
		direct := tcp
		tcp = func(ctx context.Context) (*link, error) {
			return race(ctx, through, direct, raceRules{start: directStart})
		}
	}
	switch {
	case r.transport == QUIC:
		return quic(ctx)
	case r.transport == TCP:
		return tcp(ctx)
	case r.first == TCP:
		return race(ctx, tcp, quic, raceRules{start: headStart})
	default:
		rules := raceRules{start: headStart, patience: quicPatience, heard: heard.Load}
		if r.first == QUIC {
			rules.start = knownStart
			rules.final = turnedAway // what answers there is the gateway
		}
		return race(ctx, quic, tcp, rules)
	}
}

// raceRules are for race.
type raceRules struct {
	// start is how long after first second starts at the latest if first was not
	// heard.
	start time.Duration
	// patience is how long since the beginning first may still win over a second
	// that is ready.
	patience time.Duration
	// heard says that first was answered, if not to its end; nil: nobody knows.
	heard func() bool
	// final says that an error of first's is the answer of the gateway, which
	// second could not change; nil: none is.
	final func(error) bool
}

// race starts second when first has had its start (heardStart if it was heard) or
// failed, and returns the link that is ready first; the other one is closed.
func race(ctx context.Context, first, second func(context.Context) (*link, error), rules raceRules) (*link, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		l     *link
		err   error
		first bool
	}
	results := make(chan result, 2)
	run := func(dial func(context.Context) (*link, error), isFirst bool) {
		l, err := dial(ctx)
		results <- result{l, err, isFirst}
	}
	go run(first, true)
	pending := 1
	start := time.NewTimer(rules.start)
	defer start.Stop()
	patient := time.NewTimer(rules.patience)
	defer patient.Stop()
	begun, impatient := false, rules.patience == 0
	var ready *link // second's
	var errs []error
	// Whoever is late is closed by itself.
	defer func() {
		for range pending {
			go func() {
				if r := <-results; r.l != nil {
					abandon(r.l)
				}
			}()
		}
	}()
	for {
		if ready != nil && (impatient || pending == 0) {
			return ready, nil
		}
		if begun && pending == 0 {
			return nil, errors.Join(errs...)
		}
		select {
		case <-start.C:
			if rules.heard != nil && rules.heard() {
				rules.heard = nil // it is longer once
				start.Reset(heardStart - rules.start)
				continue
			}
		case <-patient.C:
			impatient = true
			continue
		case r := <-results:
			pending--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
				if r.first && !begun && rules.final != nil && rules.final(r.err) {
					return nil, r.err
				}
			case r.first:
				if ready != nil {
					abandon(ready)
				}
				return r.l, nil
			default:
				ready = r.l
				continue
			}
		}
		if !begun {
			begun = true
			pending++
			go run(second, false)
		}
	}
}

// turnedAway reports whether a gateway has refused a QUIC handshake, because it has
// too much to do.
func turnedAway(err error) bool {
	te, ok := errors.AsType[*quic.TransportError](err)
	return ok && te.Remote && te.ErrorCode == quic.ConnectionRefused
}

// abandon ends a link that is not needed after all.
func abandon(l *link) {
	l.Close(tunnel.CloseNormal, "another connection was faster")
	_ = l.release() // nobody waits for the socket
}

// dialQUIC sets heard at the first packet that comes back.
func (d *dialer) dialQUIC(ctx context.Context, addr netip.AddrPort, conf *tls.Config, heard *atomic.Bool) (*link, error) {
	network := "udp6"
	if addr.Addr().Is4() {
		network = "udp4"
	}
	params := tunnel.AgentConfig()
	if err := d.congestion.Set(params); err != nil {
		return nil, err
	}
	tr, err := d.openTransport(network)
	if err != nil {
		return nil, err
	}
	if c, ok := tr.Conn.(*tunnel.UDPConn); ok {
		c.OnFirstRead(func() { heard.Store(true) })
	}
	conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(addr), conf, params)
	r := &roamer{conn: conn, active: tr, listen: func() (*quic.Transport, error) { return d.openTransport(network) }}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("over QUIC: %w", err), r.close())
	}
	return &link{
		Session: tunnel.NewQUICSession(conn), transport: QUIC, state: conn.ConnectionState().TLS,
		stats: func() uint64 { return conn.ConnectionStats().PacketsReceived }, roam: r.roam, free: r.close,
	}, nil
}

// dialTCP connects to "host:port", through the proxy if there is one.
func (d *dialer) dialTCP(ctx context.Context, target string, proxy *url.URL, conf *tls.Config) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, tunnel.TCPDialTimeout)
	defer cancel()
	stream := d.stream
	if stream == nil {
		stream = (&net.Dialer{}).DialContext
	}
	c, err := dialThrough(ctx, stream, proxy, target)
	if err != nil {
		return nil, fmt.Errorf("over TCP: %w", err)
	}
	fail := func(err error) (*link, error) {
		_ = c.Close() // the first error is the one that counts
		return nil, fmt.Errorf("over TCP: %w", err)
	}
	if err := tunnel.TuneTCP(c); err != nil {
		return fail(err)
	}
	tc := tls.Client(c, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	sess, err := tunnel.NewMuxSession(tc, tunnel.MuxOptions{Client: true})
	if err != nil {
		return nil, fmt.Errorf("over TCP: %w", err)
	}
	return &link{
		Session: sess, transport: TCP, state: tc.ConnectionState(), local: tunnel.AddrPort(c.LocalAddr()).Addr(),
		free: func() error { <-sess.Gone(); return nil },
	}, nil
}

// resolve returns the addresses of "host:port", at most maxAddresses.
func resolve(ctx context.Context, hostport string) ([]netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(hostport); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
	}
	host, service, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return out, nil
}
