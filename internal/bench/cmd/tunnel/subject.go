//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// dialer opens a connection to the target the way a client of the subject does.
type dialer func(context.Context) (net.Conn, error)

// subject is a tunnel to measure.
type subject struct {
	name  string
	start func(context.Context, *bed) (dialer, error)
}

// ours is the product.
func ours(name string, c tunnel.Congestion) subject {
	return subject{name, func(ctx context.Context, b *bed) (dialer, error) {
		return b.startOurs(ctx, []string{"-congestion", string(c)}, "-congestion", string(c))
	}}
}

// oursOverTCP is the product where a pool's transport is TCP. It asks the kernel for
// BBR by itself.
func oursOverTCP() subject {
	return subject{"ours over TCP, bbr", func(ctx context.Context, b *bed) (dialer, error) {
		return b.startOurs(ctx, []string{"-tcp"}, "-transport", string(agent.TCP))
	}}
}

// startOurs starts a gateway and an agent with these arguments beside the usual ones.
func (b *bed) startOurs(ctx context.Context, gateway []string, node ...string) (dialer, error) {
	if err := b.startCloud(ctx, "gateway", gateway...); err != nil {
		return nil, err
	}
	return connectDialer(b.socket()), b.startEdge(ctx, "agent", node...)
}

// startCloud starts a role of this program as the cloud end, which serves clients at
// b.socket, with these arguments beside the usual ones.
func (b *bed) startCloud(ctx context.Context, role string, more ...string) error {
	return b.startEnd(ctx, b.cloud, b.w.self, append([]string{roleCommand, role, "-pki", b.w.pki,
		"-listen", gatewayAddr.String(), "-egress", b.socket()}, more...)...)
}

// startEdge starts one as the node's end.
func (b *bed) startEdge(ctx context.Context, role string, more ...string) error {
	return b.startEnd(ctx, b.edge, b.w.self, append([]string{roleCommand, role, "-pki", b.w.pki,
		"-listen", gatewayAddr.String()}, more...)...)
}

// socket is where a client reaches the cloud end.
func (b *bed) socket() string { return filepath.Join(b.dir, "egress.sock") }

// konnectivity is sigs.k8s.io/apiserver-network-proxy, set up as upstream's
// egress selector uses it: HTTP CONNECT on a unix socket, mutual TLS to the agent.
func (w *world) konnectivity(tcp string) subject {
	return subject{"konnectivity 0.36.0, TCP " + tcp, func(ctx context.Context, b *bed) (dialer, error) {
		if err := b.pinTCP(tcp); err != nil {
			return nil, err
		}
		if err := w.startKonnectivityServer(ctx, b); err != nil {
			return nil, err
		}
		file := func(name string) string { return filepath.Join(w.pki, name) }
		err := b.startEnd(ctx, b.edge, w.konnAgent,
			"--proxy-server-host="+gatewayAddr.Addr().String(), fmt.Sprintf("--proxy-server-port=%d", gatewayAddr.Port()),
			"--ca-cert="+file("ca.crt"), "--agent-cert="+file("node.crt"), "--agent-key="+file("node.key"),
			"--agent-identifiers=host="+nodeName, "--admin-server-port=8096", "--health-server-port=8133", "--v=0")
		// The agent dials what it is told, so it is told its own loopback address.
		return connectDialerTo(b.socket(), targetAddr), err
	}}
}

// startKonnectivityServer starts its cloud end.
func (w *world) startKonnectivityServer(ctx context.Context, b *bed) error {
	file := func(name string) string { return filepath.Join(w.pki, name) }
	return b.startEnd(ctx, b.cloud, w.konnServer,
		"--mode=http-connect", "--uds-name="+b.socket(), "--server-port=0",
		fmt.Sprintf("--agent-port=%d", gatewayAddr.Port()), "--admin-port=8095", "--health-port=8134",
		"--cluster-cert="+file("server.crt"), "--cluster-key="+file("server.key"), "--cluster-ca-cert="+file("ca.crt"),
		"--proxy-strategies=destHost,default", "--v=0")
}

// chiselPort and frpPort are where a reverse tunnel of those listens in the cloud.
const reversePort = 9000

// reverseDialer connects to the port that stands for the target.
func reverseDialer(b *bed) dialer {
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), reversePort)
	return func(ctx context.Context) (net.Conn, error) { return b.cloud.DialTCP(ctx, addr) }
}

func (b *bed) pinTCP(algorithm string) error {
	ends := []interface{ PinTCP(string) error }{}
	if b.link != nil {
		ends = append(ends, b.link.A, b.link.B)
	} else {
		ends = append(ends, b.cable.A, b.cable.B)
	}
	for _, e := range ends {
		if err := e.PinTCP(algorithm); err != nil {
			return err
		}
	}
	return nil
}
