//go:build linux

package supervise

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"k8s.io/utils/clock"
)

const (
	// probeFirst is the first distance between two probes. The time until the
	// first success is part of every start that a user waits for.
	probeFirst = 20 * time.Millisecond
	// probeFastFor is how long that distance is kept: most programs are ready
	// by then, and what is slower is not hurt by a slower poll.
	probeFastFor = 5 * time.Second
	// probeLast is the distance that probing slows down to.
	probeLast = time.Second
	// probeGrowth is the factor from one distance to the next.
	probeGrowth = 1.3
	// probeTimeout bounds a single try.
	probeTimeout = 5 * time.Second
	// probeBody bounds what is kept of an answer for error messages.
	probeBody = 2 << 10
)

// HTTPProbe is ready when a GET of url is answered with a 2xx status. Its error
// carries the beginning of the answer, so "…/readyz?verbose" explains itself.
// cfg may be nil for plain http.
func HTTPProbe(url string, cfg *tls.Config) Probe {
	transport := &http.Transport{
		TLSClientConfig:     cfg,
		MaxIdleConnsPerHost: 1, // one connection, one handshake, for all tries
		IdleConnTimeout:     2 * probeLast,
		ForceAttemptHTTP2:   true,
		Proxy:               nil, // never through a proxy of the environment
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, probeBody))
		if err != nil {
			return fmt.Errorf("probe %s: %w", url, err)
		}
		if resp.StatusCode/100 == 2 {
			transport.CloseIdleConnections()
			return nil
		}
		return fmt.Errorf("probe %s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
}

// TCPProbe is ready when addr ("127.0.0.1:2379") accepts a connection.
func TCPProbe(addr string) Probe { return dialProbe("tcp", addr) }

// UnixProbe is ready when the stream socket at path accepts a connection.
func UnixProbe(path string) Probe { return dialProbe("unix", path) }

func dialProbe(network, addr string) Probe {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		return conn.Close()
	}
}

// FileProbe is ready when path exists.
func FileProbe(path string) Probe {
	return func(context.Context) error {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		return nil
	}
}

// BrokenError is a probe's error that waiting does not cure: the program runs and
// will never serve. It is stopped at once and counts as failed, where other
// errors are given until Spec.ReadyTimeout.
type BrokenError struct{ Err error }

// Error implements error.
func (e *BrokenError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *BrokenError) Unwrap() error { return e.Err }

// AllProbes is ready when every one of probes is.
func AllProbes(probes ...Probe) Probe {
	return func(ctx context.Context) error {
		for _, p := range probes {
			if err := p(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// poll tries probe until it succeeds (nil), says that it never will (a
// *BrokenError) or ctx ends; failed is told of each error.
func poll(ctx context.Context, clk clock.Clock, probe Probe, failed func(error)) error {
	if probe == nil {
		return nil
	}
	begin, distance := clk.Now(), probeFirst
	for {
		try, cancel := context.WithTimeout(ctx, probeTimeout)
		err := probe(try)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			return nil
		}
		failed(err)
		if _, broken := errors.AsType[*BrokenError](err); broken {
			return err
		}
		if clk.Since(begin) > probeFastFor {
			distance = min(time.Duration(float64(distance)*probeGrowth), probeLast)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-clk.After(distance):
		}
	}
}
