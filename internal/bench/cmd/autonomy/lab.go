//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

var (
	cloudPrefix = netip.MustParsePrefix("10.77.0.1/24")
	edgePrefix  = netip.MustParsePrefix("10.77.0.2/24")
)

// laboratory is emulated lines, and what a measurement runs on them.
type laboratory struct {
	lab     *netlab.Lab
	running *errgroup.Group // of goroutines that end with the context
	stops   []func() error  // in reverse
}

// labFailure is a panic of the lab's.
type labFailure struct{ err error }

// inLaboratory measures with lines, and takes everything down again.
func inLaboratory(ctx context.Context, measure func(context.Context, *laboratory) error) (err error) {
	if err := netlab.Supported(); err != nil {
		return fmt.Errorf("the lines cannot be emulated here: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &laboratory{lab: netlab.New(1, func(err error) { panic(labFailure{err}) })}
	l.running, ctx = errgroup.WithContext(ctx)
	defer func() {
		if p := recover(); p != nil {
			f, ok := p.(labFailure)
			if !ok {
				panic(p)
			}
			err = f.err
		}
		cancel()
		err = errors.Join(err, l.running.Wait())
		for i := len(l.stops) - 1; i >= 0; i-- {
			err = errors.Join(err, l.stops[i]())
		}
		err = errors.Join(err, l.lab.Close())
	}()
	return measure(ctx, l)
}

// atEnd has something stopped when the measurement is over.
func (l *laboratory) atEnd(stop func() error) { l.stops = append(l.stops, stop) }

// line is a node's way to the cloud: 50 Mbit/s and 60 ms there and back.
func (l *laboratory) line(name string) (trafficNode, *netlab.Host, *netlab.Host) {
	cloud, edge := l.lab.Host("cloud of "+name), l.lab.Host(name)
	link := l.lab.Link(netlab.Port{Host: cloud, Prefix: cloudPrefix}, netlab.Port{Host: edge, Prefix: edgePrefix}, netlab.WAN(50, 60*time.Millisecond))
	return trafficNode{name, link}, cloud, edge
}

func dialer(h *netlab.Host) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		return h.DialTCP(ctx, to)
	}
}

// relay carries connections to an address until ctx ends.
func relay(ctx context.Context, listener net.Listener, to string) error {
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		from, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer from.Close()
			there, err := new(net.Dialer).DialContext(ctx, "tcp", to)
			if err != nil {
				return // the client sees its connection end
			}
			defer there.Close()
			defer context.AfterFunc(ctx, func() { _, _ = from.Close(), there.Close() })()
			go func() {
				_, _ = io.Copy(there, from)
				_ = there.Close()
			}()
			_, _ = io.Copy(from, there)
		}()
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
