//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// konnectivities are konnectivity with each TCP congestion control that nodes
// and clouds have: cubic, most devices' default, and the kernel's BBR.
func (w *world) konnectivities() []subject {
	if w.konnServer == "" || w.konnAgent == "" {
		return nil
	}
	return []subject{w.konnectivity("cubic"), w.konnectivity("bbr")}
}

// reverseTunnels are the peers that forward a port and know no CONNECT.
func (w *world) reverseTunnels() []subject {
	var s []subject
	if w.chisel != "" {
		s = append(s, w.chiselOver("cubic"))
	}
	if w.frps != "" && w.frpc != "" {
		s = append(s, w.frpQUIC())
	}
	return s
}

// chiselOver is chisel: SSH in a WebSocket.
func (w *world) chiselOver(tcp string) subject {
	return subject{"chisel 1.10.1, TCP " + tcp, func(ctx context.Context, b *bed) (dialer, error) {
		if err := b.pinTCP(tcp); err != nil {
			return nil, err
		}
		port := fmt.Sprint(gatewayAddr.Port())
		if err := b.startEnd(ctx, b.cloud, w.chisel, "server", "--reverse", "--host", gatewayAddr.Addr().String(), "--port", port); err != nil {
			return nil, err
		}
		err := b.startEnd(ctx, b.edge, w.chisel, "client", "--max-retry-interval", "1s",
			"http://"+gatewayAddr.String(), fmt.Sprintf("R:127.0.0.1:%d:%s", reversePort, targetAddr))
		return reverseDialer(b), err
	}}
}

// frpQUIC is frp on its own QUIC transport.
func (w *world) frpQUIC() subject {
	return subject{"frp 0.64.0, QUIC", func(ctx context.Context, b *bed) (dialer, error) {
		server, client := filepath.Join(b.dir, "frps.toml"), filepath.Join(b.dir, "frpc.toml")
		err := os.WriteFile(server, fmt.Appendf(nil, "bindAddr = %q\nquicBindPort = %d\nbindPort = %d\nproxyBindAddr = \"127.0.0.1\"\n",
			gatewayAddr.Addr(), gatewayAddr.Port(), gatewayAddr.Port()+1), 0o600)
		if err != nil {
			return nil, err
		}
		err = os.WriteFile(client, fmt.Appendf(nil, "serverAddr = %q\nserverPort = %d\ntransport.protocol = \"quic\"\nloginFailExit = false\n"+
			"[[proxies]]\nname = \"target\"\ntype = \"tcp\"\nlocalIP = \"127.0.0.1\"\nlocalPort = 10250\nremotePort = %d\n",
			gatewayAddr.Addr(), gatewayAddr.Port(), reversePort), 0o600)
		if err != nil {
			return nil, err
		}
		if err := b.startEnd(ctx, b.cloud, w.frps, "-c", server); err != nil {
			return nil, err
		}
		return reverseDialer(b), b.startEnd(ctx, b.edge, w.frpc, "-c", client)
	}}
}
