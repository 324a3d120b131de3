package tunnel_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// transports are the kinds of Session. Every test that uses pair runs on each:
// what carries a session makes no difference to its users.
var transports = []struct {
	name string
	dial func(t *testing.T, ca *tunneltest.CA, n *tunneltest.Network) (client, server tunnel.Session, end func())
}{
	{"quic", quicPair},
	{"tcp", muxPair},
}

// The addresses of both ends.
var (
	clientAddr = netip.MustParseAddrPort("10.0.0.2:1")
	serverAddr = netip.MustParseAddrPort("10.0.0.1:443")
)

// pair runs f with two connected sessions of each transport on a simulated
// network.
func pair(t *testing.T, f func(t *testing.T, client, server tunnel.Session)) {
	t.Helper()
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server, end := tr.dial(t, tunneltest.NewCA(t), tunneltest.NewNetwork(t, time.Millisecond))
				defer end()
				f(t, client, server)
			})
		})
	}
}

func quicPair(t *testing.T, ca *tunneltest.CA, n *tunneltest.Network) (tunnel.Session, tunnel.Session, func()) {
	return quicPairOn(t, ca, n.Listen(clientAddr), n.Listen(serverAddr))
}

// quicPairOn makes it on two sockets, which end closes.
func quicPairOn(t *testing.T, ca *tunneltest.CA, clientConn, serverConn net.PacketConn) (tunnel.Session, tunnel.Session, func()) {
	st := &quic.Transport{Conn: serverConn}
	ln, err := st.Listen(serverTLS(t, ca), tunnel.GatewayConfig())
	if err != nil {
		t.Fatal(err)
	}
	ct := &quic.Transport{Conn: clientConn}
	cc, err := ct.Dial(t.Context(), net.UDPAddrFromAddrPort(serverAddr), clientTLS(ca), tunnel.AgentConfig())
	if err != nil {
		t.Fatal(err)
	}
	sc, err := ln.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, server := tunnel.NewQUICSession(cc), tunnel.NewQUICSession(sc)
	return client, server, func() {
		client.Close(tunnel.CloseNormal, "")
		server.Close(tunnel.CloseNormal, "")
		ln.Close()
		for _, tr := range []*quic.Transport{ct, st} {
			tr.Close()
			tr.Conn.Close()
		}
	}
}

func muxPair(t *testing.T, ca *tunneltest.CA, n *tunneltest.Network) (tunnel.Session, tunnel.Session, func()) {
	ln := n.ListenStream(serverAddr)
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := ln.Accept(); err == nil {
			accepted <- c
		}
	}()
	a, err := n.DialStream(t.Context(), clientAddr.Addr(), serverAddr)
	if err != nil {
		t.Fatal(err)
	}
	b := <-accepted
	server, err := tunnel.NewMuxSession(tls.Server(b, serverTLS(t, ca)), tunnel.MuxOptions{Budget: tunnel.NewBudget(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	client, err := tunnel.NewMuxSession(tls.Client(a, clientTLS(ca)), tunnel.MuxOptions{Client: true})
	if err != nil {
		t.Fatal(err)
	}
	return client, server, func() {
		client.Close(tunnel.CloseNormal, "")
		server.Close(tunnel.CloseNormal, "")
		<-client.Gone()
		<-server.Gone()
	}
}

func serverTLS(t *testing.T, ca *tunneltest.CA) *tls.Config {
	return &tls.Config{NextProtos: []string{tunnel.ALPN}, Certificates: []tls.Certificate{*ca.Gateway(t, tunnel.ServerName)}}
}

func clientTLS(ca *tunneltest.CA) *tls.Config {
	return &tls.Config{NextProtos: []string{tunnel.ALPN}, RootCAs: ca.Pool, ServerName: tunnel.ServerName}
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

// A FIN that was not read before the session ended is no end of the stream:
// nobody could tell it from one that comes of the session's end.
func TestSessionCloseAfterFIN(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		// What comes after the FIN is there, and so is that.
		streams(t, client, server)
		server.Close(tunnel.CloseGoingAway, "")
		if _, err := s.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			t.Error("the stream ended as if all had been sent")
		}
		<-client.Done()
		if _, ok := client.Err().(*tunnel.CloseError); !ok {
			t.Errorf("%v", client.Err())
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

func TestResetCodes(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		c.Reset(tunnel.ResetStalled)
		for name, try := range map[string]func() error{
			"read":  func() error { _, err := s.Read(make([]byte, 1)); return err },
			"write": func() error { _, err := s.Write(make([]byte, 1<<20)); return err },
		} {
			re, ok := errors.AsType[*tunnel.ResetError](try())
			if !ok || re.Code != tunnel.ResetStalled || !re.Remote {
				t.Errorf("%s: %v", name, re)
			}
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read at the end that reset: %v", err)
		}
		if _, err := c.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write at the end that reset: %v", err)
		}
		s.Close()
		c.Close()
	})
}

// What arrived before FIN is read after it, and a stream whose owner wants no
// more does not hold up the one who goes on sending.
func TestCloseTellsTheSender(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		s.Write([]byte("refused"))
		s.Close()
		<-time.After(time.Second)
		if b, err := io.ReadAll(c); err != nil || string(b) != "refused" {
			t.Errorf("%q, %v", b, err)
		}
		errc := make(chan error, 1)
		go func() {
			for {
				if _, err := c.Write(make([]byte, 1<<10)); err != nil {
					errc <- err
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		if re, ok := errors.AsType[*tunnel.ResetError](<-errc); !ok || !re.Remote || re.Code != tunnel.ResetClosed {
			t.Errorf("%+v", re)
		}
		c.Close()
	})
}

func TestWriteDeadline(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		c, s := streams(t, client, server)
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		start := time.Now()
		n, err := c.Write(make([]byte, 64<<20)) // nobody reads
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute || n == 0 {
			t.Errorf("%d after %s: %v", n, time.Since(start), err)
		}
		// It can be lifted, and what was written before arrives whole.
		c.SetWriteDeadline(time.Time{})
		got := make(chan int64, 1)
		go func() {
			k, _ := io.CopyN(io.Discard, s, int64(n)+1<<20)
			got <- k
		}()
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if k := <-got; k != int64(n)+1<<20 {
			t.Errorf("%d bytes arrived of %d", k, n+1<<20)
		}
		// A stream of which a write failed half way does not end as if it were
		// whole.
		c.Close()
		if _, err := io.ReadAll(s); err == nil {
			t.Error("clean end")
		}
		s.Close()
	})
}

func TestBigTransfersBothWays(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		const size = 8 << 20
		var wg sync.WaitGroup
		for range 4 {
			c, s := streams(t, client, server)
			for _, end := range []tunnel.Stream{c, s} {
				wg.Go(func() {
					h := sha256.New()
					if _, err := io.Copy(h, end); err != nil {
						t.Errorf("read: %v", err)
					}
					if want := sha256.Sum256(pattern(size)); !bytes.Equal(h.Sum(nil), want[:]) {
						t.Error("bytes differ")
					}
				})
				wg.Go(func() {
					if _, err := end.Write(pattern(size)); err != nil {
						t.Errorf("write: %v", err)
					}
					if err := end.CloseWrite(); err != nil {
						t.Errorf("close write: %v", err)
					}
				})
			}
		}
		wg.Wait()
	})
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 / 3)
	}
	return b
}

// Fifty streams that nobody reads, at either end, each with a sender that
// sends all it may: every other stream works.
func TestStalledReadersHarmNobody(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		ends := func(c, s tunnel.Stream, i int) (from, to tunnel.Stream) {
			if i%2 == 0 {
				return c, s
			}
			return s, c
		}
		var stuck []tunnel.Stream
		for i := range 100 {
			c, s := streams(t, client, server)
			from, _ := ends(c, s, i)
			go from.Write(make([]byte, 8<<20))
			stuck = append(stuck, c, s)
		}
		synctest.Wait()
		<-time.After(10 * time.Second)
		for i := range 50 {
			c, s := streams(t, client, server)
			from, to := ends(c, s, i)
			go func() {
				from.Write(pattern(1 << 20))
				from.CloseWrite()
			}()
			to.SetReadDeadline(time.Now().Add(time.Minute))
			if b, err := io.ReadAll(to); err != nil || !bytes.Equal(b, pattern(1<<20)) {
				t.Fatalf("stream %d: %d bytes, %v", i, len(b), err)
			}
			to.Close()
			from.Close()
		}
		for _, st := range stuck {
			st.Reset(tunnel.ResetAborted)
		}
	})
}

// A place is free again when a stream has ended.
func TestStreamLimitIsOfOpenStreams(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		go func() {
			for {
				s, err := server.Accept(context.Background())
				if err != nil {
					return
				}
				go func() {
					io.Copy(io.Discard, s)
					s.Close()
				}()
			}
		}()
		for range 3 * tunnel.MaxStreams {
			c, err := client.Open()
			if errors.Is(err, tunnel.ErrStreamLimit) {
				<-time.After(time.Second) // until the ends of the others have arrived
				c, err = client.Open()
			}
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte("x"))
			c.CloseWrite()
			if _, err := io.ReadAll(c); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	})
}

// An outage shorter than IdleTimeout ends nothing, a longer one ends the
// session at both ends.
func TestOutages(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := tunneltest.NewNetwork(t, time.Millisecond)
				client, server, end := tr.dial(t, tunneltest.NewCA(t), n)
				defer end()
				c, s := streams(t, client, server)
				<-time.After(5 * time.Minute) // idle
				for range 10 {
					n.Cut(clientAddr.Addr(), true)
					<-time.After(5 * time.Second) // QUIC's probes come ever later, here up to 10 s
					n.Cut(clientAddr.Addr(), false)
					<-time.After(8 * time.Second)
				}
				c.Write([]byte("still here"))
				if _, err := io.ReadFull(s, make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
				n.Cut(clientAddr.Addr(), true)
				start := time.Now()
				for _, sess := range []tunnel.Session{client, server} {
					<-sess.Done()
					if sess.Err() == nil {
						t.Error("no error")
					}
				}
				if d := time.Since(start); d < tunnel.IdleTimeout-tunnel.KeepAlive || d > tunnel.IdleTimeout+tunnel.KeepAlive {
					t.Errorf("ended after %s", d)
				}
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("read works")
				}
			})
		})
	}
}

func TestCloseReasons(t *testing.T) {
	for _, code := range []tunnel.CloseCode{tunnel.CloseNormal, tunnel.CloseSuperseded, tunnel.CloseInternal} {
		pair(t, func(t *testing.T, client, server tunnel.Session) {
			client.Close(code, "because")
			client.Close(tunnel.CloseDenied, "too late")
			<-server.Done()
			want := tunnel.CloseError{Code: code, Reason: "because", Remote: true}
			if ce, ok := errors.AsType[*tunnel.CloseError](server.Err()); !ok || *ce != want {
				t.Errorf("%+v", server.Err())
			}
			want.Remote = false
			if ce, ok := errors.AsType[*tunnel.CloseError](client.Err()); !ok || *ce != want {
				t.Errorf("%+v", client.Err())
			}
		})
	}
}
