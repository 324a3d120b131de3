package quichook_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlogwriter"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// fixed is an algorithm with a window that never changes.
type fixed struct {
	window                   int64
	sent, acked, lost, sizes atomic.Int64
}

func (f *fixed) CanSend(inFlight int64) bool               { return inFlight < f.window }
func (f *fixed) GetCongestionWindow() int64                { return f.window }
func (f *fixed) HasPacingBudget(int64) bool                { return true }
func (f *fixed) InRecovery() bool                          { return false }
func (f *fixed) InSlowStart() bool                         { return false }
func (f *fixed) MaybeExitSlowStart()                       {}
func (f *fixed) OnCongestionEvent(_, _, _ int64)           { f.lost.Add(1) }
func (f *fixed) OnRetransmissionTimeout(bool)              {}
func (f *fixed) OnSpuriousLoss(int64)                      {}
func (f *fixed) SetMaxDatagramSize(int64)                  { f.sizes.Add(1) }
func (f *fixed) TimeUntilSend(int64) int64                 { return 0 }
func (f *fixed) OnPacketAcked(_, bytes, _, _ int64)        { f.acked.Add(bytes) }
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
	hook, err := quichook.Install(e.conn, func(n quichook.Counters) quichook.Algorithm {
		f := &fixed{window: 123_456}
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
	tr := &quic.Transport{Conn: pc}
	t.Cleanup(func() { tr.Close(); pc.Close() })
	return tr
}

// connect makes a connection over loopback.
func connect(t *testing.T, conf *quic.Config) (client, server *end) {
	t.Helper()
	ca := tunneltest.NewCA(t)
	st, ct := socket(t), socket(t)
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
