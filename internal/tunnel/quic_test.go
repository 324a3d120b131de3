package tunnel_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// pair runs f with two connected sessions on a simulated network.
func pair(t *testing.T, f func(t *testing.T, client, server tunnel.Session)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := tunneltest.NewCA(t)
		n := tunneltest.NewNetwork(t, time.Millisecond)
		addr := netip.MustParseAddrPort("10.0.0.1:443")
		st := &quic.Transport{Conn: n.Listen(addr)}
		ln, err := st.Listen(&tls.Config{
			NextProtos: []string{tunnel.ALPN}, Certificates: []tls.Certificate{*ca.Gateway(t, tunnel.ServerName)},
		}, tunnel.GatewayConfig())
		if err != nil {
			t.Fatal(err)
		}
		ct := &quic.Transport{Conn: n.Listen(netip.MustParseAddrPort("10.0.0.2:1"))}
		cc, err := ct.Dial(t.Context(), net.UDPAddrFromAddrPort(addr), &tls.Config{
			NextProtos: []string{tunnel.ALPN}, RootCAs: ca.Pool, ServerName: tunnel.ServerName,
		}, tunnel.AgentConfig())
		if err != nil {
			t.Fatal(err)
		}
		sc, err := ln.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		client, server := tunnel.NewQUICSession(cc), tunnel.NewQUICSession(sc)
		defer func() {
			client.Close(tunnel.CloseNormal, "")
			server.Close(tunnel.CloseNormal, "")
			ln.Close()
			for _, tr := range []*quic.Transport{ct, st} {
				tr.Close()
				tr.Conn.Close()
			}
		}()
		f(t, client, server)
	})
}

// streams opens a stream and accepts it at the other end.
func streams(t *testing.T, client, server tunnel.Session) (c, s tunnel.Stream) {
	t.Helper()
	c, err := client.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	s, err = server.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestStreamIsANetConn(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		if c.RemoteAddr().String() != "10.0.0.1:443" || client.Remote().String() != "10.0.0.1:443" {
			t.Errorf("addresses %s, %s", c.RemoteAddr(), client.Remote())
		}
		// A read deadline passes and can be lifted.
		c.SetReadDeadline(time.Now().Add(time.Second))
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		c.SetReadDeadline(time.Time{})
		// Half-close, then the other direction.
		c.Write([]byte("request"))
		c.CloseWrite()
		if b, err := io.ReadAll(s); err != nil || string(b) != "request" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := c.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		s.Write([]byte("answer"))
		s.Close()
		if b, err := io.ReadAll(c); err != nil || string(b) != "answer" {
			t.Errorf("%q, %v", b, err)
		}
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) && err != io.EOF {
			t.Errorf("read after Close: %v", err)
		}
	})
}

// Close ends a write that is blocked, and the other end must not take what it
// got for all of it.
func TestCloseUnblocksWrite(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		done := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 64<<20))
			done <- err
		}()
		synctest.Wait()
		time.AfterFunc(time.Second, func() { c.Close() })
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
		if _, err := io.Copy(io.Discard, s); err == nil {
			t.Error("a truncated stream ended cleanly")
		}
		s.Close()
	})
}

func TestCloseUnblocksRead(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		time.AfterFunc(time.Second, func() { c.Close() })
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		s.Close()
	})
}

func TestSessionClose(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		if client.Err() != nil {
			t.Error(client.Err())
		}
		server.Close(tunnel.CloseRevoked, strings.Repeat("ä", 2000))
		<-client.Done()
		ce, ok := errors.AsType[*tunnel.CloseError](client.Err())
		if !ok || ce.Code != tunnel.CloseRevoked || !ce.Remote || len(ce.Reason) != 256 {
			t.Errorf("%+v", client.Err())
		}
		for _, st := range []tunnel.Stream{c, s} {
			if _, err := st.Read(make([]byte, 1)); err == nil {
				t.Error("read after the end")
			} else if _, ok := errors.AsType[*tunnel.CloseError](err); !ok {
				t.Errorf("read: %v", err)
			}
			st.Close()
		}
		if _, err := client.Open(); err == nil {
			t.Error("opened after the end")
		}
		if _, err := client.Accept(t.Context()); err == nil {
			t.Error("accepted after the end")
		}
	})
}

func TestStreamLimit(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		for i := range tunnel.MaxStreams {
			if _, err := client.Open(); err != nil {
				t.Fatalf("stream %d: %v", i, err)
			}
		}
		if _, err := client.Open(); !errors.Is(err, tunnel.ErrStreamLimit) {
			t.Errorf("error: %v", err)
		}
	})
}

// spliced is a <-> tunnel <-> b with Splice at both ends, and the outer ends of
// it.
func spliced(t *testing.T, client, server tunnel.Session) (a, b *tunneltest.PipeConn, results chan tunnel.Spliced) {
	t.Helper()
	c, s := streams(t, client, server)
	a, a2 := tunneltest.Pipe()
	b, b2 := tunneltest.Pipe()
	results = make(chan tunnel.Spliced, 2)
	go func() { results <- tunnel.Splice(a2, c, tunnel.SpliceOptions{}) }()
	go func() { results <- tunnel.Splice(s, b2, tunnel.SpliceOptions{}) }()
	return a, b, results
}

func TestSpliceHalfClose(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		a, b, results := spliced(t, client, server)
		io.WriteString(a, "question")
		a.CloseWrite()
		if got, err := io.ReadAll(b); err != nil || string(got) != "question" {
			t.Errorf("%q, %v", got, err)
		}
		<-time.After(time.Hour) // the open half stays open
		big := bytes.Repeat([]byte("answer"), 100_000)
		go func() {
			b.Write(big)
			b.CloseWrite()
		}()
		if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, big) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		r1, r2 := <-results, <-results
		if r1.Err != nil || r2.Err != nil || r1.AToB != 8 || r2.AToB != 8 || r1.BToA != 600_000 || r2.BToA != 600_000 {
			t.Errorf("%+v, %+v", r1, r2)
		}
	})
}

func TestSpliceReset(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		a, b, results := spliced(t, client, server)
		io.WriteString(a, "x")
		io.ReadFull(b, make([]byte, 1))
		b.SetLinger(0)
		b.Close()
		if _, err := io.ReadAll(a); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("error: %v", err)
		}
		if r1, r2 := <-results, <-results; r1.Err == nil || r2.Err == nil {
			t.Errorf("%+v, %+v", r1, r2)
		}
		a.Close()
	})
}

// One end wants no more, but goes on sending.
func TestSpliceStopReading(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		a, a2 := tunneltest.Pipe()
		result := make(chan tunnel.Spliced, 1)
		go func() { result <- tunnel.Splice(a2, c, tunnel.SpliceOptions{}) }()
		io.WriteString(a, "x")
		io.ReadFull(s, make([]byte, 1))
		go func() {
			s.Write([]byte("last words"))
			s.Close() // FIN, and no wish to read on
		}()
		<-time.After(time.Second)
		for range 100 {
			if _, err := a.Write(make([]byte, 10<<10)); err != nil {
				t.Fatalf("write: %v", err)
			}
		}
		if got, err := io.ReadAll(a); err != nil || string(got) != "last words" {
			t.Errorf("%q, %v", got, err)
		}
		a.CloseWrite()
		if r := <-result; r.Err != nil || r.BToA != 10 {
			t.Errorf("%+v", r)
		}
		a.Close()
	})
}

func TestSpliceNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, a2 := tunneltest.Pipe()
		b, b2 := tunneltest.Pipe()
		want := errors.New("dial failed")
		r := tunnel.Splice(a2, b2, tunnel.SpliceOptions{Prefix: []byte("p"), ReadyB: func() error { return want }})
		if !errors.Is(r.Err, want) {
			t.Errorf("%+v", r)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("error: %v", err)
		}
		a.Close()
		b.Close()
	})
}

func TestAwaitIsBounded(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		d, err := tunnel.OpenDial(client, tunnel.Header{Kind: tunnel.KindKubelet})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
		st, err := server.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tunnel.AcceptDial(st); err != nil {
			t.Fatal(err)
		}
		// The opener has given up: the stream is broken in both directions.
		if _, err := st.Read(make([]byte, 1)); err == nil {
			t.Error("the stream lives on")
		}
		st.Close()
	})
	// A stream without a header does not stay for ever.
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		start := time.Now()
		if _, err := tunnel.AcceptDial(s); err == nil || time.Since(start) != tunnel.HelloTimeout {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		c.Close()
	})
}

func TestDialFailure(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want tunnel.Status
	}{
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, tunnel.StatusRefused},
		{context.DeadlineExceeded, tunnel.StatusTimeout},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, tunnel.StatusTimeout},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, tunnel.StatusUnreachable},
		{&tunnel.StatusError{Status: tunnel.StatusDenied, Text: "no"}, tunnel.StatusDenied},
	} {
		if got := tunnel.DialFailure(tc.err); got.Status != tc.want || got.Text == "" {
			t.Errorf("%v: %+v", tc.err, got)
		}
	}
}
