//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/memory"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// roleCommand begins the arguments of this program's own child processes.
const roleCommand = "role"

// roleMain is one of the processes of a measurement. It ends with its parent.
func roleMain(args []string) int {
	f := flag.NewFlagSet(roleCommand, flag.ContinueOnError)
	dir := f.String("pki", "", "")
	listen := f.String("listen", "", "")
	egress := f.String("egress", "", "")
	congestion := f.String("congestion", "", "")
	tcp := f.Bool("tcp", false, "")
	transport := f.String("transport", string(agent.Auto), "")
	nodes := f.Int("nodes", 0, "")
	if len(args) == 0 {
		return 2
	}
	if err := f.Parse(args[1:]); err != nil {
		return 2
	}
	slog.SetLogLoggerLevel(slog.LevelWarn)
	var err error
	switch args[0] {
	case "gateway":
		err = gatewayRole(*dir, *listen, *egress, tunnel.Congestion(*congestion), *tcp)
	case "agent":
		err = agentRole(*dir, *listen, tunnel.Congestion(*congestion), agent.Transport(*transport))
	case "crowd":
		err = crowdRole(*dir, *listen, *nodes)
	case "bare-cloud":
		err = bareCloud(context.Background(), *dir, *listen, *egress)
	case "bare-edge":
		err = bareEdge(context.Background(), *dir, *listen)
	case "target":
		err = targetRole(*listen)
	default:
		err = fmt.Errorf("there is no role %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, args[0]+":", err)
		return 1
	}
	return 0
}

// credentials are a certificate of the run's authority, and that as a pool.
func credentials(dir, name string) (func() (*tls.Certificate, error), *x509.CertPool, error) {
	cert, err := pki.LoadTLS(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, nil, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, nil, errors.New("no certificate authority")
	}
	return func() (*tls.Certificate, error) { return &cert, nil }, pool, nil
}

// gatewayRole serves sessions over QUIC, and with tcp over TCP too, as gateways
// do: without it, a subject is sure to be measured over QUIC.
func gatewayRole(dir, listen, egress string, c tunnel.Congestion, tcp bool) error {
	cert, pool, err := credentials(dir, "server")
	if err != nil {
		return err
	}
	gw, err := gateway.New(gateway.Config{
		Certificate: cert, ClientCAs: pool,
		Authorize:     func(string, *x509.Certificate) error { return nil },
		DialAPIServer: func(context.Context) (net.Conn, error) { return nil, errors.New("there is no apiserver here") },
		Routes:        noRoutes{},
		Congestion:    c,
		Logger:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(context.Background(), "udp", listen)
	if err != nil {
		return err
	}
	ln, err := lc.Listen(context.Background(), "unix", egress)
	if err != nil {
		return err
	}
	go memory.Keep(context.Background(), memory.Gateway) // as `edge gateway run` does
	errc := make(chan error, 3)
	if tcp {
		tln, err := lc.Listen(context.Background(), "tcp", listen)
		if err != nil {
			return err
		}
		go func() { errc <- gw.ServeTCP(context.Background(), tln) }()
	}
	go func() { errc <- gw.ServePacket(context.Background(), pc) }()
	go func() { errc <- gw.ServeEgress(context.Background(), ln) }()
	return <-errc
}

// noRoutes knows the node by its session alone.
type noRoutes struct{}

func (noRoutes) PodOwner(netip.Addr) (string, error) { return "", gateway.ErrNoRoute }
func (noRoutes) HasNode(name string) bool            { return name == nodeName }

func agentRole(dir, server string, c tunnel.Congestion, t agent.Transport) error {
	cert, pool, err := credentials(dir, "node")
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		Gateways: []string{server}, RootCAs: pool, Certificate: cert, NodeName: nodeName,
		DialKubelet: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", targetAddr)
		},
		Congestion: c, Transport: t,
	})
	if err != nil {
		return err
	}
	return a.Run(context.Background())
}

// The target does what the first byte of a connection asks for.
const (
	askEcho  = 'e' // each byte comes back
	askBulk  = 'b' // zeros, as fast as they go
	askPaced = 'p' // zeros, at pacedRate
	askSink  = 's' // takes what comes
)

// pacedRate is the traffic in the background of a measurement: 5 Mbit/s.
const pacedRate = 5e6 / 8

func targetRole(listen string) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", listen)
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serveTarget(c)
		}()
	}
}

// serveTarget serves a connection until its end, of which no error is news.
func serveTarget(c net.Conn) {
	ask := make([]byte, 1)
	if _, err := io.ReadFull(c, ask); err != nil {
		return
	}
	zeros := make([]byte, 256<<10)
	switch ask[0] {
	case askEcho:
		_, _ = io.Copy(c, c)
	case askBulk:
		for {
			if _, err := c.Write(zeros); err != nil {
				return
			}
		}
	case askPaced:
		const every = 20 * time.Millisecond
		for range time.Tick(every) {
			if _, err := c.Write(zeros[:int(pacedRate*every.Seconds())]); err != nil {
				return
			}
		}
	case askSink:
		_, _ = io.Copy(io.Discard, c)
	}
}
