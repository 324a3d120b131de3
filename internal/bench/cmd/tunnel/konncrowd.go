//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// konnectivityCrowd is konnectivity's server with agents that are no more than
// what it sees of one: a gRPC connection over mutual TLS and one stream on it.
// Its real agent takes 38 MB a process.
func (w *world) konnectivityCrowd() crowdSubject {
	return crowdSubject{
		name:  "konnectivity 0.36.0",
		start: func(ctx context.Context, b *bed) error { return w.startKonnectivityServer(ctx, b) },
		connect: func(ctx context.Context, b *bed, n int) (*crowdProcess, func() error, error) {
			wait, err := w.konnectivityAgents(ctx, b, n)
			return nil, wait, err
		},
	}
}

// connecting is how many agents connect at the same time: a handshake takes four
// round trips.
const connecting = 64

// konnectivityAgents returns when n agents are connected. They stay until ctx
// ends.
func (w *world) konnectivityAgents(ctx context.Context, b *bed, n int) (wait func() error, err error) {
	source, pool, err := w.nodeCredentials()
	if err != nil {
		return nil, err
	}
	cert, err := source()
	if err != nil {
		return nil, err
	}
	conf := grpctls.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}, RootCAs: pool, ServerName: tunnel.ServerName})
	ctx, cancel := context.WithCancel(ctx)
	lost := make(chan error, n)
	var connected errgroup.Group
	connected.SetLimit(connecting)
	var agents sync.WaitGroup
	wait = func() error {
		cancel()
		agents.Wait()
		close(lost)
		return <-lost // nil if there is none
	}
	for i := range n {
		connected.Go(func() error {
			end, err := konnectivityAgent(ctx, b, conf, fmt.Sprintf("crowd-%d", i))
			if err != nil {
				return fmt.Errorf("konnectivity agent %d: %w", i, err)
			}
			agents.Go(func() {
				if err := end(); ctx.Err() == nil {
					lost <- fmt.Errorf("konnectivity agent %d: its stream has ended: %w", i, err)
				}
			})
			return nil
		})
	}
	if err := connected.Wait(); err != nil {
		return nil, errors.Join(err, wait())
	}
	return wait, nil
}

// konnectivityAgent connects one agent. end returns when its stream has ended.
func konnectivityAgent(ctx context.Context, b *bed, conf grpctls.TransportCredentials, name string) (end func() error, err error) {
	cc, err := grpc.NewClient("passthrough:///"+gatewayAddr.String(), grpc.WithTransportCredentials(conf),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			ap, err := netip.ParseAddrPort(addr)
			if err != nil {
				return nil, err
			}
			return b.edge.DialTCP(ctx, ap)
		}))
	if err != nil {
		return nil, err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "agentID", name, "agentIdentifiers", "host="+name)
	st, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/AgentService/Connect", grpc.WaitForReady(true))
	if err == nil {
		_, err = st.Header() // the server has registered it
	}
	if err != nil {
		return nil, errors.Join(err, cc.Close())
	}
	return func() error { return errors.Join(st.RecvMsg(&emptypb.Empty{}), cc.Close()) }, nil
}
