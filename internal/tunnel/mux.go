package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-yamux/v5"
)

// This is the Session where UDP does not get through: one TLS connection over
// TCP, shared by a multiplexer (yamux in libp2p's version, which has half-close,
// deadlines, reset codes and windows that grow with the reader). What a Session
// promises and it lacks is made up for here:
//
//	close reasons      stream 1 is the notice stream. The dialler opens it; each
//	                   end may write one notice (see notice.go) before it closes
//	Accept with a ctx  one goroutine accepts for all
//	stop reading       a stream closed with more to come is read to its end for
//	                   a while, then reset, since yamux has no STOP_SENDING
//	stream limit       counted by who opens
//	priorities         sendGate lets urgent streams fill more of the send queue
//
// TCP keeps the order of everything, so that a lost packet holds up all streams
// until it is resent, which QUIC does not.

const (
	// muxChunk is the payload of one frame. With yamux's header it is one TLS
	// record of the largest size.
	muxChunk = 16<<10 - muxHeader
	// muxHeader is the header of each frame.
	muxHeader = 12
	// muxStreamWindow is where yamux's windows begin (its specification has no
	// smaller one); maxStreamWindow is where their growth ends, as with QUIC.
	muxStreamWindow = 256 << 10
	// muxOpenTimeout bounds the sending of a stream's first frame: the queue in
	// front of the connection is short, so that what has not left it after
	// this is an outage.
	muxOpenTimeout = 5 * time.Second
	// muxCloseLinger is how long a closing end waits for the other to read why
	// and close: a few round trips of a bad link.
	muxCloseLinger = time.Second
	// muxDrainTimeout is how long a stream that is closed here goes on reading
	// what the other end still sends before it is reset: the other end may
	// still be reading what came before our FIN, and a reset would drop that.
	muxDrainTimeout = 10 * time.Second
	// muxGoAway is added to a CloseCode to make it one of yamux's go-away codes,
	// of which the first three have a meaning there.
	muxGoAway = 0x100
)

// MuxOptions of NewMuxSession.
type MuxOptions struct {
	// Client: this end has dialled; exactly one of them has.
	Client bool
	// Budget bounds the growth of receive windows; nil: none.
	Budget *Budget
	// Streams is how many streams the other end may have open: each may make
	// this end hold a whole window. 0: what MaxStreams needs.
	Streams int
}

// MuxSession is a Session over a reliable connection. Its connection is closed
// and its goroutines are gone when Gone is closed, shortly after Done.
type MuxSession struct {
	y      *yamux.Session
	conn   *muxConn
	client bool

	accepted chan *yamux.Stream
	done     chan struct{}
	gone     chan struct{}
	wg       sync.WaitGroup

	mu      sync.Mutex // guards all below
	err     error
	notice  *yamux.Stream // nil until it is open
	streams map[*muxStream]struct{}
	opened  int // of streams, those that we opened
}

// NewMuxSession makes a Session of a connection that is encrypted and
// authenticated already; it owns c from here on.
func NewMuxSession(c net.Conn, o MuxOptions) (*MuxSession, error) {
	if o.Streams == 0 {
		// The opener counts and keeps to MaxStreams. A stream may be over there
		// and still be read out here, so the count here is higher for a while.
		o.Streams = 2 * MaxStreams
	}
	mc := &muxConn{Conn: c, gate: newSendGate()}
	conf := &yamux.Config{
		// Every stream may be waiting to be accepted at once: nothing is
		// refused for the order of things, and OpenStream never waits for it.
		AcceptBacklog: MaxStreams,
		PingBacklog:   32,
		// As with QUIC it is the agent that keeps the session alive, and both
		// ends that notice silence (muxConn.Read).
		EnableKeepAlive: o.Client, KeepAliveInterval: KeepAlive,
		MeasureRTTInterval:      30 * time.Second,
		ConnectionWriteTimeout:  IdleTimeout,
		MaxIncomingStreams:      uint32(o.Streams),
		InitialStreamWindowSize: muxStreamWindow,
		MaxStreamWindowSize:     maxStreamWindow,
		MaxMessageSize:          muxChunk + muxHeader,
		ReadBufSize:             4 << 10,
		LogOutput:               io.Discard, // what it says there is in the session's error
	}
	s := &MuxSession{
		conn: mc, client: o.Client, accepted: make(chan *yamux.Stream),
		done: make(chan struct{}), gone: make(chan struct{}), streams: map[*muxStream]struct{}{},
	}
	var err error
	if o.Client {
		s.y, err = yamux.Client(mc, conf, o.Budget.spans())
	} else {
		s.y, err = yamux.Server(mc, conf, o.Budget.spans())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("multiplexer: %w", err), c.Close())
	}
	if o.Client {
		if err := s.openNotice(); err != nil {
			return nil, errors.Join(err, s.y.Close())
		}
	}
	s.wg.Go(s.acceptLoop)
	go func() {
		<-s.y.CloseChan()
		s.wg.Wait()
		close(s.gone)
	}()
	return s, nil
}

// openNotice opens the notice stream, before any other.
func (s *MuxSession) openNotice() error {
	ctx, cancel := context.WithTimeout(context.Background(), muxOpenTimeout)
	defer cancel()
	st, err := s.y.OpenStream(ctx)
	if err != nil {
		return fmt.Errorf("open the session's own stream: %w", err)
	}
	s.setNotice(st)
	return nil
}

func (s *MuxSession) setNotice(st *yamux.Stream) {
	s.mu.Lock()
	s.notice = st
	s.mu.Unlock()
	s.wg.Go(func() { s.awaitNotice(st) })
}

// awaitNotice reads the one notice that the other end may send.
func (s *MuxSession) awaitNotice(st *yamux.Stream) {
	closed, err := readNotice(st)
	if err == nil {
		s.end(closed)
		_ = s.y.Close() // the other end waits for it
		return
	}
	if !s.y.IsClosed() {
		s.Close(CloseProtocol, err.Error())
	}
}

// acceptLoop accepts streams until the session ends; the first that a server
// sees is the notice stream.
func (s *MuxSession) acceptLoop() {
	for first := !s.client; ; first = false {
		st, err := s.y.AcceptStream()
		if err != nil {
			// Only the end of the session does that.
			s.end(lost(err))
			return
		}
		if first {
			s.setNotice(st)
			continue
		}
		select {
		case s.accepted <- st:
		case <-s.y.CloseChan():
		}
	}
}

// lost is the error of a connection that nobody closed on purpose.
func lost(err error) error {
	if ga, ok := errors.AsType[*yamux.GoAwayError](err); ok && ga.ErrorCode >= muxGoAway {
		return &CloseError{Code: CloseCode(ga.ErrorCode - muxGoAway), Remote: ga.Remote}
	}
	return fmt.Errorf("tunnel connection lost: %w", err)
}

// end records why the session ended and wakes everything that waits on it. Only
// the first call has an effect, and it returns true.
func (s *MuxSession) end(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false
	}
	s.err = err
	close(s.done)
	for st := range s.streams {
		st.interrupt()
	}
	return true
}

// Open implements Session.
func (s *MuxSession) Open() (Stream, error) { return s.openUntil(context.Background()) }

// openUntil is Open that gives up when ctx ends.
func (s *MuxSession) openUntil(ctx context.Context) (Stream, error) {
	s.mu.Lock()
	switch {
	case s.err != nil:
		defer s.mu.Unlock()
		return nil, fmt.Errorf("open stream: %w", s.err)
	case s.opened >= MaxStreams:
		s.mu.Unlock()
		return nil, ErrStreamLimit
	}
	s.opened++
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, muxOpenTimeout)
	defer cancel()
	st, err := s.y.OpenStream(ctx)
	if err != nil {
		s.mu.Lock()
		s.opened--
		s.mu.Unlock()
		return nil, fmt.Errorf("open stream: %w", s.mapError(err))
	}
	return s.stream(st, true), nil
}

// stream wraps and registers st.
func (s *MuxSession) stream(st *yamux.Stream, opened bool) *muxStream {
	ms := &muxStream{y: st, s: s, opened: opened, writeBy: newDeadline()}
	ms.SetUrgency(3) // QUIC's own default
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[ms] = struct{}{}
	if s.err != nil {
		ms.interrupt()
	}
	return ms
}

// forget is called once when st has ended in both directions.
func (s *MuxSession) forget(st *muxStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.streams[st]; !ok {
		return
	}
	delete(s.streams, st)
	if st.opened {
		s.opened--
	}
}

// Accept implements Session.
func (s *MuxSession) Accept(ctx context.Context) (Stream, error) {
	select {
	case st := <-s.accepted:
		return s.stream(st, false), nil
	case <-s.done:
		return nil, fmt.Errorf("accept stream: %w", s.Err())
	case <-ctx.Done():
		return nil, fmt.Errorf("accept stream: %w", ctx.Err())
	}
}

// Close implements Session. The connection is closed a moment later, so that
// the other end learns why.
func (s *MuxSession) Close(code CloseCode, reason string) {
	closed := &CloseError{Code: code, Reason: cutReason(reason)}
	if s.end(closed) {
		// Not in wg: Gone is what waits for it, through CloseChan.
		go s.farewell(closed)
	}
}

func (s *MuxSession) farewell(closed *CloseError) {
	s.conn.hurry(muxCloseLinger)
	s.mu.Lock()
	notice := s.notice
	s.mu.Unlock()
	if notice != nil {
		// If it cannot be sent, the code goes with the go-away frame below, or
		// the other end sees the connection end.
		_ = notice.SetWriteDeadline(time.Now().Add(muxCloseLinger))
		if _, err := notice.Write(appendNotice(nil, closed)); err == nil {
			t := time.NewTimer(muxCloseLinger)
			select {
			case <-s.y.CloseChan():
			case <-t.C:
			}
			t.Stop()
		}
	}
	_ = s.y.CloseWithError(muxGoAway + uint32(closed.Code)) // always nil
}

// Done implements Session.
func (s *MuxSession) Done() <-chan struct{} { return s.done }

func (s *MuxSession) isDone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Gone is closed when the connection is closed and no goroutine is left.
func (s *MuxSession) Gone() <-chan struct{} { return s.gone }

// Err implements Session.
func (s *MuxSession) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Remote implements Session.
func (s *MuxSession) Remote() netip.AddrPort { return AddrPort(s.conn.RemoteAddr()) }

// Stats tells what the multiplexer knows: the kernel has the rest.
func (s *MuxSession) Stats() Stats {
	return Stats{Transport: OverTCP, RTT: s.y.RTT(), Sent: s.conn.written.Load(), Received: s.conn.read.Load()}
}

// mapError gives an error of a stream or the session the form that Session
// promises. One that means the end of the session waits until that is recorded.
func (s *MuxSession) mapError(err error) error {
	if se, ok := errors.AsType[*yamux.StreamError](err); ok {
		return &ResetError{Code: ResetCode(se.ErrorCode), Remote: se.Remote}
	}
	switch {
	case errors.Is(err, yamux.ErrTimeout):
		select {
		case <-s.done:
			return s.Err()
		default:
			return errDeadline
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, yamux.ErrStreamsExhausted):
		return err
	case err == yamux.ErrStreamClosed, err == yamux.ErrStreamReset: //nolint:errorlint // a GoAwayError is ErrStreamReset too, to errors.Is
		return net.ErrClosed
	}
	<-s.done
	return s.Err()
}

// muxConn is the connection below the multiplexer.
type muxConn struct {
	net.Conn
	gate          *sendGate
	read, written atomic.Uint64 // bytes

	mu      sync.Mutex // guards all below
	readSet time.Time  // when the read deadline was set last
	latest  time.Time  // no write deadline may be after it; zero: any may
}

// Read ends the session when nothing was heard for IdleTimeout.
func (c *muxConn) Read(p []byte) (int, error) {
	now := time.Now()
	c.mu.Lock()
	stale := now.Sub(c.readSet) >= time.Second
	if stale {
		c.readSet = now
	}
	c.mu.Unlock()
	if stale { // a deadline costs more than the read of a small frame
		if err := c.SetReadDeadline(now.Add(IdleTimeout)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	c.read.Add(uint64(n))
	return n, err
}

// Write is called by one goroutine with one frame at a time.
func (c *muxConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(uint64(n))
	c.gate.sent(len(p) - muxHeader)
	return n, err
}

// SetWriteDeadline implements net.Conn within the bound of hurry.
func (c *muxConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.latest.IsZero() && (t.IsZero() || t.After(c.latest)) {
		t = c.latest
	}
	return c.Conn.SetWriteDeadline(t)
}

// hurry makes every write, the one in progress too, end within d from now.
func (c *muxConn) hurry(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest = time.Now().Add(d)
	_ = c.Conn.SetWriteDeadline(c.latest) // fails on a closed connection only
}
