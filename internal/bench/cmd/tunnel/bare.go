//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// bareProtocol is the ALPN of a subject that is nothing but quic-go.
const bareProtocol = "bench-bare"

// bareConfig has windows that no line here fills.
func bareConfig() *quic.Config {
	return &quic.Config{
		InitialStreamReceiveWindow: 4 << 20, MaxStreamReceiveWindow: 8 << 20,
		InitialConnectionReceiveWindow: 16 << 20, MaxConnectionReceiveWindow: 16 << 20,
	}
}

// bare is quic-go as it is released and what copies between it and a socket: a
// connection is a stream, without a protocol, a controller or a socket of ours. What
// it takes of processor is the least that ours can take on this machine.
func bare() subject {
	return subject{"quic-go 0.65 alone", func(ctx context.Context, b *bed) (dialer, error) {
		socket := filepath.Join(b.dir, "egress.sock")
		err := b.startEnd(ctx, b.cloud, b.w.self, roleCommand, "bare-cloud", "-pki", b.w.pki,
			"-listen", gatewayAddr.String(), "-egress", socket)
		if err != nil {
			return nil, err
		}
		err = b.startEnd(ctx, b.edge, b.w.self, roleCommand, "bare-edge", "-pki", b.w.pki, "-listen", gatewayAddr.String())
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}, err
	}}
}

// bareCloud takes one connection from a node and opens a stream of it for each client.
func bareCloud(ctx context.Context, dir, listen, egress string) error {
	cert, pool, err := credentials(dir, "server")
	if err != nil {
		return err
	}
	own, err := cert()
	if err != nil {
		return err
	}
	ln, err := quic.ListenAddr(listen, &tls.Config{
		Certificates: []tls.Certificate{*own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: []string{bareProtocol}, MinVersion: tls.VersionTLS13,
	}, bareConfig())
	if err != nil {
		return err
	}
	node, err := ln.Accept(ctx)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	clients, err := lc.Listen(ctx, "unix", egress)
	if err != nil {
		return err
	}
	for {
		c, err := clients.Accept()
		if err != nil {
			return err
		}
		st, err := node.OpenStreamSync(ctx)
		if err != nil {
			return err
		}
		go bothWays(c, st)
	}
}

// bareEdge connects each stream with the target.
func bareEdge(ctx context.Context, dir, server string) error {
	cert, pool, err := credentials(dir, "node")
	if err != nil {
		return err
	}
	own, err := cert()
	if err != nil {
		return err
	}
	c, err := quic.DialAddr(ctx, server, &tls.Config{
		Certificates: []tls.Certificate{*own}, RootCAs: pool, ServerName: tunnel.ServerName,
		NextProtos: []string{bareProtocol}, MinVersion: tls.VersionTLS13,
	}, bareConfig())
	if err != nil {
		return err
	}
	for {
		st, err := c.AcceptStream(ctx)
		if err != nil {
			return err
		}
		var d net.Dialer
		t, err := d.DialContext(ctx, "tcp", targetAddr)
		if err != nil {
			return err
		}
		go bothWays(t, st)
	}
}

// bothWays copies until both directions have ended, of which no error is news.
func bothWays(c net.Conn, st *quic.Stream) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.CopyBuffer(struct{ io.Writer }{st}, struct{ io.Reader }{c}, make([]byte, 128<<10))
		_ = st.Close()
	}()
	_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{st}, make([]byte, 128<<10))
	_ = c.Close()
	<-done
}
