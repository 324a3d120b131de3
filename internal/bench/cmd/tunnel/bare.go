//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"

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

// bareTLS is the TLS configuration of either end, which has the named certificate.
func bareTLS(dir, name string) (*tls.Config, error) {
	source, pool, err := credentials(dir, name)
	if err != nil {
		return nil, err
	}
	cert, err := source()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{*cert}, NextProtos: []string{bareProtocol}, MinVersion: tls.VersionTLS13,
		RootCAs: pool, ServerName: tunnel.ServerName,
		ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}

// bare is quic-go as it is released and what copies between it and a socket: a
// connection is a stream, without a protocol, a controller or a socket of ours. What
// it takes of processor tells how much of ours is the library's.
func bare() subject {
	return subject{"quic-go 0.65 alone", func(ctx context.Context, b *bed) (dialer, error) {
		if err := b.startCloud(ctx, "bare-cloud"); err != nil {
			return nil, err
		}
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", b.socket())
		}, b.startEdge(ctx, "bare-edge")
	}}
}

// bareCloud takes one connection from a node and opens a stream of it for each client.
func bareCloud(ctx context.Context, dir, listen, egress string) error {
	conf, err := bareTLS(dir, "server")
	if err != nil {
		return err
	}
	ln, err := quic.ListenAddr(listen, conf, bareConfig())
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
	conf, err := bareTLS(dir, "node")
	if err != nil {
		return err
	}
	c, err := quic.DialAddr(ctx, server, conf, bareConfig())
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

// bothWays copies until both directions have ended.
func bothWays(c net.Conn, st *quic.Stream) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		oneWay(st, c)
		_ = st.Close()
	}()
	oneWay(c, st)
	_ = c.Close()
	<-done
}

// oneWay copies until src ends or breaks, which is no news, or dst does. Neither end
// copies by itself, in pieces of a size of its own.
func oneWay(dst io.Writer, src io.Reader) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 128<<10))
}
