package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// ServePacket serves nodes and joining devices on pc, which it owns from here
// on, until ctx ends or the gateway is closed; both return nil. The end of ctx
// closes every session of this socket at once; Close drains.
func (g *Gateway) ServePacket(ctx context.Context, pc net.PacketConn) error {
	return g.serving(ctx, pc, func(ctx context.Context) error { return g.servePacket(ctx, pc) })
}

func (g *Gateway) servePacket(ctx context.Context, pc net.PacketConn) error {
	cert, err := g.cfg.Certificate()
	if err != nil {
		return fmt.Errorf("gateway: certificate: %w", err)
	}
	conn := tunnel.WrapPacketConn(pc, &g.lost)
	if u, ok := conn.(*tunnel.UDPConn); ok {
		u.Gather()
	}
	tr := &quic.Transport{
		Conn:              conn,
		StatelessResetKey: resetKey(cert),
		VerifySourceAddress: func(net.Addr) bool {
			if !g.underWay.many(time.Now()) && g.handshakes.Allow() {
				return false
			}
			g.metrics.handshake(tunnel.OverQUIC, "validated")
			return true
		},
	}
	conf, admitted := tunnel.GatewayConfig(), tunnel.GatewayConfig()
	if err := errors.Join(g.cfg.Congestion.Set(conf), g.cfg.Congestion.Set(admitted)); err != nil {
		return fmt.Errorf("gateway: serve %s: %w", pc.LocalAddr(), err)
	}
	conf.GetConfigForClient = func(client *quic.ClientInfo) (*quic.Config, error) {
		if !g.accepted.Allow() || !g.underWay.begin(time.Now(), tunnel.AddrPort(client.RemoteAddr)) {
			g.metrics.handshake(tunnel.OverQUIC, "refused")
			return nil, errTooManyHandshakes // quic-go answers CONNECTION_REFUSED
		}
		g.metrics.handshake(tunnel.OverQUIC, "begun")
		return admitted, nil
	}
	ln, err := tr.Listen(g.tlsConfig(), conf)
	if err != nil {
		return fmt.Errorf("gateway: serve %s: %w", pc.LocalAddr(), err)
	}
	var conns sync.WaitGroup
	var serr error
	for {
		// quic-go holds 32 connections for Accept and refuses more, so nothing
		// is done here but to hand them on.
		qc, err := ln.Accept(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, quic.ErrServerClosed) {
				serr = fmt.Errorf("gateway: accept on %s: %w", pc.LocalAddr(), err)
			}
			break
		}
		conns.Go(func() { g.serveConn(ctx, qc, &conns) })
	}
	// Order: no new connections; the handlers, which end with ctx and say good
	// bye; then the socket.
	err = ln.Close()
	conns.Wait()
	return errors.Join(serr, err, tr.Close())
}

var errTooManyHandshakes = errors.New("too many handshakes at the moment")

func (g *Gateway) serveConn(ctx context.Context, qc *quic.Conn, group *sync.WaitGroup) {
	g.underWay.done(tunnel.AddrPort(qc.RemoteAddr()))
	g.metrics.handshake(tunnel.OverQUIC, "done")
	g.serveSession(ctx, tunnel.NewQUICSession(qc), qc.ConnectionState().TLS, group)
}

// serveSession serves a session, whatever carries it, by the protocol that its
// handshake agreed on.
func (g *Gateway) serveSession(ctx context.Context, sess tunnel.Session, state tls.ConnectionState, group *sync.WaitGroup) {
	switch state.NegotiatedProtocol {
	case tunnel.ALPN:
		g.serveNode(ctx, sess, state.PeerCertificates, group)
	case tunnel.MeshALPN:
		g.serveMesh(ctx, sess, state.PeerCertificates)
		sess.Close(tunnel.CloseGoingAway, "gateway stops")
	case tunnel.JoinALPN:
		g.serveJoin(ctx, sess)
		sess.Close(tunnel.CloseGoingAway, "gateway stops")
	case tunnel.RenewALPN:
		g.serveRenew(ctx, sess, state.PeerCertificates)
		sess.Close(tunnel.CloseGoingAway, "gateway stops")
	}
}

// tlsConfig asks for a client certificate or not by what the client speaks.
func (g *Gateway) tlsConfig() *tls.Config {
	base := tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.cfg.Certificate() },
		// A resumed session would carry a certificate past its check. A full
		// handshake costs a millisecond.
		SessionTicketsDisabled: true,
	}
	node := base.Clone()
	node.NextProtos = []string{tunnel.ALPN}
	node.ClientAuth = tls.RequireAndVerifyClientCert
	node.ClientCAs = g.cfg.ClientCAs
	mesh := node.Clone()
	mesh.NextProtos = []string{tunnel.MeshALPN}
	join := base.Clone()
	join.NextProtos = []string{tunnel.JoinALPN}
	renew := base.Clone()
	renew.NextProtos = []string{tunnel.RenewALPN}
	// It must hold the certificate's key; what else it must be, serveRenew says.
	renew.ClientAuth = tls.RequireAnyClientCert

	outer := base.Clone()
	outer.NextProtos = []string{tunnel.ALPN, tunnel.JoinALPN, tunnel.RenewALPN, tunnel.MeshALPN}
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.Contains(hello.SupportedProtos, tunnel.ALPN):
			return node, nil
		case slices.Contains(hello.SupportedProtos, tunnel.JoinALPN):
			return join, nil
		case slices.Contains(hello.SupportedProtos, tunnel.RenewALPN):
			return renew, nil
		case g.cfg.ID != "" && slices.Contains(hello.SupportedProtos, tunnel.MeshALPN):
			return mesh, nil
		default:
			return nil, fmt.Errorf("gateway: client speaks none of %q", outer.NextProtos)
		}
	}
	return outer
}

// resetKey lets a restarted gateway tell nodes at once that their sessions are
// gone (RFC 9000 section 10.3). It must survive the restart and be secret, so it
// is derived from the private key, which is and does. With a key that cannot
// leave its hardware there is none, and nodes notice by timeout.
func resetKey(cert *tls.Certificate) *quic.StatelessResetKey {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil
	}
	mac := hmac.New(sha256.New, der)
	mac.Write([]byte("edge gateway stateless reset 1"))
	return (*quic.StatelessResetKey)(mac.Sum(nil))
}
