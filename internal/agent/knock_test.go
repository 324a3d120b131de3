package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestUnanswered(t *testing.T) {
	timeout := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	failed := func(e syscall.Errno) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", e)} }
	both := func(a, b error) error {
		return fmt.Errorf("gateway a: %w", errors.Join(fmt.Errorf("over QUIC: %w", a), fmt.Errorf("over TCP: %w", b)))
	}
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"silence", both(&quic.IdleTimeoutError{}, timeout), true},
		{"a handshake that stops", both(&quic.HandshakeTimeoutError{}, context.DeadlineExceeded), true},
		{"no route", both(failed(syscall.ENETUNREACH), failed(syscall.EHOSTUNREACH)), true},
		{"no name", fmt.Errorf("gateway a: %w", &net.DNSError{Err: "server misbehaving"}), true},
		{"several gateways", errors.Join(both(&quic.IdleTimeoutError{}, timeout), both(&quic.IdleTimeoutError{}, timeout)), true},
		{"refused over TCP", both(&quic.IdleTimeoutError{}, failed(syscall.ECONNREFUSED)), false},
		{"one gateway of two answers", errors.Join(both(&quic.IdleTimeoutError{}, timeout), &tunnel.CloseError{Code: tunnel.CloseDenied, Remote: true}), false},
		{"a certificate", both(&quic.TransportError{ErrorCode: 0x12d, Remote: true}, timeout), false},
		{"anything else", errors.New("no other gateway"), false},
		{"nothing", nil, false},
	} {
		if got := unanswered(tc.err); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

// knocked is an agent whose gateways nobody answers for until answer is set.
func knocked(t *testing.T, answer func() error, proxy *url.URL) (a *Agent, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	a = &Agent{
		cfg:  Config{Jitter: func(max time.Duration) time.Duration { return max / 2 }},
		poke: make(chan struct{}, 1),
		dir:  &directory{seeds: []string{"192.0.2.1:443", "192.0.2.2:443"}},
	}
	a.net.proxy = func(string) (*url.URL, error) { return proxy, nil }
	a.net.stream = func(ctx context.Context, _, _ string) (net.Conn, error) {
		asked.Add(1)
		if err := answer(); !errors.Is(err, os.ErrDeadlineExceeded) {
			here, there := net.Pipe()
			there.Close()
			return here, err
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return a, asked
}

func TestPauseUntilAGatewayThatAnswers(t *testing.T) {
	const wait = 30 * time.Second
	for _, tc := range []struct {
		name   string
		from   time.Duration // on somebody answers
		answer error
		knock  bool
		proxy  *url.URL
		want   time.Duration
		asked  int32
	}{
		{"never", time.Hour, nil, true, nil, wait, 7},
		{"after a while", 9 * time.Second, nil, true, nil, 12*time.Second + knockSpread/2, 3},
		{"with a refusal", 9 * time.Second, syscall.ECONNREFUSED, true, nil, 12*time.Second + knockSpread/2, 3},
		{"had answered before", 0, nil, false, nil, wait, 0},
		{"a proxy would answer", 0, nil, true, &url.URL{Host: "proxy:3128"}, wait, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				a, asked := knocked(t, func() error {
					if time.Since(start) < tc.from {
						return os.ErrDeadlineExceeded
					}
					return tc.answer
				}, tc.proxy)
				if !a.pause(t.Context(), wait, tc.knock, 0) {
					t.Error("it was ended")
				}
				if d := time.Since(start); d != tc.want || asked.Load() != tc.asked {
					t.Errorf("waited %s and knocked %d times, want %s and %d", d, asked.Load(), tc.want, tc.asked)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		a, _ := knocked(t, func() error { return os.ErrDeadlineExceeded }, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		if a.pause(ctx, wait, true, 0) || time.Since(start) != 5*time.Second {
			t.Errorf("went on for %s", time.Since(start))
		}
		a.poke <- struct{}{}
		if !a.pause(t.Context(), wait, true, 0) || time.Since(start) != 5*time.Second {
			t.Errorf("a Poke was heard after %s", time.Since(start))
		}
	})
}
