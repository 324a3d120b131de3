package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// maxAddresses is how many addresses of one gateway name are tried: each costs
// up to a handshake timeout (5 s).
const maxAddresses = 4

// link is a QUIC connection and the socket it alone uses.
type link struct {
	tunnel.Session
	conn *quic.Conn
	tr   *quic.Transport
	pc   net.PacketConn
}

// release frees the socket; the session must have been closed.
func (l *link) release() error { return errors.Join(l.tr.Close(), ignoreClosed(l.pc.Close())) }

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// dialing is how connections to gateways are made.
type dialing struct {
	tls        *tls.Config
	listen     func() (net.PacketConn, error) // nil: any port of every address
	congestion tunnel.Congestion
}

// dialGateway resolves "host:port" and makes a connection to the first address
// that answers.
func dialGateway(ctx context.Context, gateway string, d dialing) (*link, error) {
	addrs, err := resolve(ctx, gateway)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range addrs {
		l, err := dialAddr(ctx, addr, d)
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

func dialAddr(ctx context.Context, addr netip.AddrPort, d dialing) (*link, error) {
	conf := tunnel.AgentConfig()
	if err := d.congestion.Set(conf); err != nil {
		return nil, err
	}
	var pc net.PacketConn
	var err error
	if d.listen != nil {
		pc, err = d.listen()
	} else {
		// A socket of the wildcard address follows the default route when the
		// node's own address changes.
		network := "udp6"
		if addr.Addr().Is4() {
			network = "udp4"
		}
		pc, err = net.ListenUDP(network, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	tr := &quic.Transport{Conn: tunnel.WrapPacketConn(pc)}
	conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(addr), d.tls, conf)
	l := &link{conn: conn, tr: tr, pc: pc}
	if err != nil {
		return nil, errors.Join(err, l.release())
	}
	l.Session = tunnel.NewQUICSession(conn)
	return l, nil
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
