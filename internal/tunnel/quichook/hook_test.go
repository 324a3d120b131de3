package quichook_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// fixed is an algorithm with a window that never changes.
type fixed struct {
	window                            int64
	sent, acked, lost, size, timeouts atomic.Int64
	largest                           atomic.Int64 // bytes of a packet that was acknowledged
	want                              atomic.Int64 // size to restart with, once; 0: not
	hurry                             atomic.Int64 // nanoseconds: every of Acknowledge; 0: it is not called
	conn                              quichook.Connection
}

func (f *fixed) CanSend(inFlight int64) bool {
	if size := f.want.Swap(0); size > 0 {
		f.conn.Restart(size)
		f.size.Store(size)
		f.largest.Store(0)
	}
	if every := f.hurry.Load(); every > 0 {
		f.conn.Acknowledge(time.Duration(every))
	}
	return inFlight < f.window
}
func (f *fixed) GetCongestionWindow() int64      { return f.window }
func (f *fixed) HasPacingBudget(int64) bool      { return true }
func (f *fixed) InRecovery() bool                { return false }
func (f *fixed) InSlowStart() bool               { return false }
func (f *fixed) MaybeExitSlowStart()             {}
func (f *fixed) OnCongestionEvent(_, _, _ int64) { f.lost.Add(1) }
func (f *fixed) OnRetransmissionTimeout(bool)    { f.timeouts.Add(1) }
func (f *fixed) OnSpuriousLoss(int64)            {}
func (f *fixed) SetMaxDatagramSize(size int64)   { f.size.Store(size) }
func (f *fixed) TimeUntilSend(int64) int64       { return 0 }
func (f *fixed) OnPacketAcked(_, bytes, _, _ int64) {
	f.acked.Add(bytes)
	f.largest.Store(max(f.largest.Load(), bytes))
}
func (f *fixed) OnPacketSent(_, _, _, bytes int64, _ bool) { f.sent.Add(bytes) }

// end is one end of a connection and the algorithms it was given.
type end struct {
	conn *quic.Conn
	tr   *quic.Transport
	made chan *fixed
	hook *quichook.Hook
}

func (e *end) install(t *testing.T) <-chan struct{} {
	t.Helper()
	hook, err := quichook.Install(e.conn, func(n quichook.Counters, conn quichook.Connection) quichook.Algorithm {
		f := &fixed{window: 123_456, conn: conn}
		n.Window.Store(uint64(f.window))
		e.made <- f
		return f
	})
	if err != nil {
		t.Fatal(err)
	}
	e.hook = hook
	return hook.Installed()
}

func socket(t *testing.T) *quic.Transport {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return transport(t, pc)
}

func transport(t *testing.T, pc net.PacketConn) *quic.Transport {
	t.Helper()
	tr := &quic.Transport{Conn: pc}
	t.Cleanup(func() { tr.Close(); pc.Close() })
	return tr
}

// connect makes a connection over loopback.
func connect(t *testing.T, conf *quic.Config) (client, server *end) {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return connectOn(t, pc, conf)
}

// connectOn does so with the client's socket.
func connectOn(t *testing.T, pc net.PacketConn, conf *quic.Config) (client, server *end) {
	t.Helper()
	return connectOver(t, transport(t, pc), socket(t), conf)
}

// connectOver does so with both ends' sockets.
func connectOver(t *testing.T, ct, st *quic.Transport, conf *quic.Config) (client, server *end) {
	t.Helper()
	ca := tunneltest.NewCA(t)
	ln, err := st.Listen(&tls.Config{NextProtos: []string{"x"}, Certificates: []tls.Certificate{*ca.Gateway(t, "server")}}, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	cc, err := ct.Dial(t.Context(), st.Conn.LocalAddr(), &tls.Config{NextProtos: []string{"x"}, RootCAs: ca.Pool, ServerName: "server"}, conf)
	if err != nil {
		t.Fatal(err)
	}
	sc, err := ln.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.CloseWithError(0, ""); sc.CloseWithError(0, "") })
	return &end{conn: cc, tr: ct, made: make(chan *fixed, 10)}, &end{conn: sc, tr: st, made: make(chan *fixed, 10)}
}

// transfer sends n bytes there and back.
func transfer(t *testing.T, from, to *quic.Conn, n int64) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		st, err := to.AcceptStream(context.Background())
		if err == nil {
			_, err = io.Copy(st, st)
			st.Close()
		}
		done <- err
	}()
	st, err := from.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		st.Write(make([]byte, n))
		st.Close()
	}()
	got, err := io.Copy(io.Discard, st)
	if err != nil || got != n {
		t.Fatalf("%d bytes came back, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// This is the test that fails when a quic-go has another shape.
func TestInstall(t *testing.T) {
	client, server := connect(t, &quic.Config{Tracer: quichook.Tracer})
	ci, si := client.install(t), server.install(t)
	transfer(t, client.conn, server.conn, 1<<20)
	<-ci
	<-si
	for _, e := range []*end{client, server} {
		f := <-e.made
		if f.sent.Load() < 1<<20 || f.acked.Load() < 1<<19 {
			t.Errorf("the algorithm was told of %d bytes sent and %d acknowledged", f.sent.Load(), f.acked.Load())
		}
		if got := e.conn.ConnectionStats().CongestionWindow; got != 123_456 {
			t.Errorf("statistics have a window of %d", got)
		}
	}
	// What others may do from now on.
	st, err := client.conn.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	st.SetPriority(0, true)
	transfer(t, server.conn, client.conn, 1<<20)
	if len(client.made)+len(server.made) != 0 {
		t.Error("another algorithm was made without a new path")
	}
}

// quic-go begins anew on a new path, at both ends.
func TestMigration(t *testing.T) {
	client, server := connect(t, &quic.Config{Tracer: quichook.Tracer})
	ci, si := client.install(t), server.install(t)
	transfer(t, client.conn, server.conn, 1<<10)
	<-ci
	<-si
	<-client.made
	<-server.made
	path, err := client.conn.AddPath(socket(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	if err := path.Switch(); err != nil {
		t.Fatal(err)
	}
	transfer(t, client.conn, server.conn, 1<<20)
	for _, e := range []*end{client, server} {
		select {
		case f := <-e.made:
			if f.sent.Load() == 0 {
				t.Error("the new path's algorithm was told of nothing")
			}
		default:
			t.Error("no algorithm was made for the new path")
		}
	}
}

// Packets are set back and grow again, at either end, and the algorithm is told.
func TestRestart(t *testing.T) {
	const first, most = 1232, 1452
	client, server := connect(t, &quic.Config{Tracer: quichook.Tracer, InitialPacketSize: first})
	ends := map[string]*end{"client": client, "server": server}
	algorithms := map[string]*fixed{}
	ci, si := client.install(t), server.install(t)
	transfer(t, client.conn, server.conn, 1<<10)
	<-ci
	<-si
	for name, e := range ends {
		algorithms[name] = <-e.made
	}
	// Discovery ends when it is that near to what both ends take (maxMTUDiff of quic-go).
	grow := func(t *testing.T, f *fixed) {
		t.Helper()
		for n := 0; f.size.Load() < most-21; n++ {
			if n == 200 {
				t.Fatalf("packets do not grow beyond %d bytes", f.size.Load())
			}
			transfer(t, client.conn, server.conn, 1<<20)
		}
	}
	for name, f := range algorithms {
		t.Run(name, func(t *testing.T) {
			grow(t, f)
			for round := range 3 {
				f.want.Store(first)
				for f.want.Load() != 0 {
					transfer(t, client.conn, server.conn, 1<<10)
				}
				// With the acknowledgements of probes, which are larger than the rest.
				grow(t, f)
				if f.largest.Load() > most {
					t.Errorf("round %d: a packet of %d bytes", round, f.largest.Load())
				}
			}
		})
	}
}

// silent is a socket from which nothing arrives once it is on.
type silent struct {
	net.PacketConn
	on atomic.Bool
}

func (s *silent) WriteTo(b []byte, to net.Addr) (int, error) {
	if s.on.Load() {
		return len(b), nil
	}
	return s.PacketConn.WriteTo(b, to)
}

// quic-go does not call what the hook then calls.
func TestProbeTimeouts(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	quiet := &silent{PacketConn: pc}
	client, server := connectOn(t, quiet, &quic.Config{Tracer: quichook.Tracer, MaxIdleTimeout: time.Minute})
	ci, si := client.install(t), server.install(t)
	transfer(t, client.conn, server.conn, 1<<10)
	<-ci
	<-si
	f := <-client.made
	quiet.on.Store(true)
	st, err := client.conn.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for f.timeouts.Load() < 3 {
		select {
		case <-client.conn.Context().Done():
			t.Fatalf("%d probe timeouts until the connection has ended", f.timeouts.Load())
		case <-time.After(10 * time.Millisecond): // a poll
		}
	}
}

// heard keeps how long the other end has waited with its acknowledgements.
type heard struct{ delays chan time.Duration }

func (h *heard) Close() error { return nil }
func (h *heard) RecordEvent(e qlogwriter.Event) {
	p, ok := e.(qlog.PacketReceived)
	if !ok {
		return
	}
	for _, f := range p.Frames {
		if ack, ok := f.Frame.(*qlog.AckFrame); ok {
			h.delays <- ack.DelayTime
		}
	}
}

// What has come alone is acknowledged at once, and what comes soon after it as quic-go
// does by itself, after 25 ms.
func TestAcknowledge(t *testing.T) {
	const delay = 25 * time.Millisecond // quic-go's MaxAckDelay
	synctest.Test(t, func(t *testing.T) {
		n := tunneltest.NewNetwork(t, 5*time.Millisecond)
		client, server := connectOver(t, transport(t, n.Listen(netip.MustParseAddrPort("10.0.0.2:1"))),
			transport(t, n.Listen(netip.MustParseAddrPort("10.0.0.1:1"))), &quic.Config{Tracer: quichook.Tracer, DisablePathMTUDiscovery: true})
		ci, si := client.install(t), server.install(t)
		transfer(t, client.conn, server.conn, 1<<10)
		<-ci
		<-si
		f := <-server.made
		h := &heard{delays: make(chan time.Duration, 100)}
		stop, err := client.hook.Record(h)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		st, err := client.conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		// each sends a packet every second, and returns how long their acknowledgements
		// took to be sent.
		each := func(packets int) (delays []time.Duration) {
			t.Helper()
			for range packets {
				if _, err := st.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Second)
				synctest.Wait()
			}
			for len(h.delays) > 0 {
				delays = append(delays, <-h.delays)
			}
			return delays
		}
		each(2) // with the first of them events begin to come
		for _, step := range []struct {
			name  string
			every time.Duration // 0: it is not asked for
			want  []time.Duration
		}{
			{"quic-go by itself", 0, []time.Duration{delay, delay}},
			{"at once", time.Second / 2, []time.Duration{0, 0}},
			{"at once, and then not within so long", 1500 * time.Millisecond, []time.Duration{delay, 0, delay, 0}},
			{"by itself again", 0, []time.Duration{delay, delay}},
		} {
			f.hurry.Store(int64(step.every))
			if got := each(len(step.want)); !slices.Equal(got, step.want) {
				t.Errorf("%s: %v, want %v", step.name, got, step.want)
			}
		}
	})
}

func TestNoTracer(t *testing.T) {
	client, _ := connect(t, &quic.Config{})
	if _, err := quichook.Install(client.conn, nil); !errors.Is(err, quichook.ErrNoHook) {
		t.Errorf("error: %v", err)
	}
}

// events counts what it is given.
type events struct {
	n      atomic.Int64
	closed atomic.Bool // nothing may come any more
	late   atomic.Int64
}

func (e *events) RecordEvent(qlogwriter.Event) {
	e.n.Add(1)
	if e.closed.Load() {
		e.late.Add(1)
	}
}

func (e *events) Close() error { return nil }

// Recordings begin and end in the middle of a connection, whatever others do
// meanwhile.
func TestRecord(t *testing.T) {
	client, server := connect(t, &quic.Config{Tracer: quichook.Tracer})
	ci, si := client.install(t), server.install(t)
	transfer(t, client.conn, server.conn, 1<<10)
	<-ci
	<-si
	stop := make(chan struct{})
	var busy sync.WaitGroup
	defer busy.Wait()
	defer close(stop)
	st, err := client.conn.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.conn.AcceptStream(t.Context()); err != nil { // transfer's are the next
		t.Fatal(err)
	}
	busy.Go(func() {
		for urgency := int8(0); ; urgency++ {
			select {
			case <-stop:
				return
			default:
				client.hook.SetPriority(st, urgency%8, true)
			}
		}
	})
	for range 5 {
		e := &events{}
		end, err := client.hook.Record(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.hook.Record(e); !errors.Is(err, quichook.ErrRecorded) {
			t.Errorf("a second recorder: %v", err)
		}
		before := client.conn.ConnectionStats().PacketsSent
		transfer(t, client.conn, server.conn, 1<<20)
		sent := int64(client.conn.ConnectionStats().PacketsSent - before)
		end()
		e.closed.Store(true)
		if n := e.n.Load(); n < sent/2 {
			t.Errorf("%d events of %d packets", n, sent)
		}
		transfer(t, client.conn, server.conn, 1<<20)
		if n := e.late.Load(); n > 0 {
			t.Errorf("%d events after the end", n)
		}
	}
	if len(client.made) != 1 {
		t.Errorf("%d algorithms were made", len(client.made))
	}
}
