package tunnel

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// spliceBuffer is the size of a copy buffer: a request or an answer fits,
	// and 1,000 idle connections hold 32 MiB at most.
	spliceBuffer = 16 << 10
	// bulkBuffer is that of a direction that carries bulk (see flow) and keeps
	// filling it: one system call and one wait for the stream's window in eight.
	bulkBuffer = 128 << 10
)

// buffers and bulkBuffers are caches and hold no state.
var (
	buffers     = sync.Pool{New: func() any { b := make([]byte, spliceBuffer); return &b }}
	bulkBuffers = sync.Pool{New: func() any { b := make([]byte, bulkBuffer); return &b }}
)

// deafLimit is how long a connection is kept of which only one direction goes on,
// which its reader does not want: until its source learns of the other one's end
// and ends too, as most do at once, and the last bytes of that are delivered.
const deafLimit = 30 * time.Second

// SpliceOptions changes how Splice begins.
type SpliceOptions struct {
	// Prefix was already read from a and goes to b first.
	Prefix []byte
	// ClientFirst holds back what b sends until a has sent something. A client
	// of HTTP CONNECT takes bytes that arrive with the answer for an error
	// (k8s.io/apiserver does), and only its own first bytes prove that it has
	// read the answer.
	ClientFirst bool
	// ReadyB is called before the first read from b; its error aborts.
	ReadyB func() error
	// Stalls cuts the connection when nobody reads what its stream brings and
	// others need what it holds; nil: nobody does. Where both are streams it is of
	// b's session, and StallsA of a's: each direction holds credit of the session
	// that its bytes come from.
	Stalls, StallsA *Stalls
}

// Spliced is what Splice carried, in bytes. Err is nil if each direction ended
// with an end of file, or nobody wanted what it would still have brought.
type Spliced struct {
	AToB, BToA int64
	Err        error
}

// Splice copies between a and b until both directions have ended, and closes
// both.
//
//	a ends (EOF, FIN)      -> b.CloseWrite; b may go on sending
//	a breaks (RST, reset)  -> b is reset, and a
//	b stops reading        -> what a sends is dropped; b may go on sending
//	that, and b has ended  -> both are broken, unless a ends within deafLimit
//
// A conn without CloseWrite is closed where a half-close would be needed.
func Splice(a, b net.Conn, o SpliceOptions) Spliced {
	s := &splice{spoken: make(chan struct{}), aborted: make(chan struct{}), a: a, b: b}
	if !o.ClientFirst || len(o.Prefix) > 0 {
		s.speak()
	}
	var out Spliced
	done := make(chan struct{})
	go func() {
		defer close(done)
		if o.ReadyB != nil {
			if err := o.ReadyB(); err != nil {
				s.abort(err)
				return
			}
		}
		out.BToA = s.copy(a, b, o.Stalls, nil, func() bool {
			select {
			case <-s.spoken:
				return true
			case <-s.aborted:
				return false
			}
		})
	}()
	stallsA := o.StallsA
	if stallsA == nil {
		stallsA = o.Stalls
	}
	var err error
	if len(o.Prefix) > 0 {
		var n int
		n, err = b.Write(o.Prefix)
		out.AToB = int64(n)
	}
	if err != nil {
		s.abort(err)
	} else {
		out.AToB += s.copy(b, a, stallsA, s.speak, nil)
	}
	<-done
	s.end()
	_ = a.Close() // both have ended: nothing is lost, nobody to tell
	_ = b.Close()
	out.Err = s.err
	return out
}

type splice struct {
	a, b      net.Conn
	speakOnce sync.Once
	spoken    chan struct{} // closed when a has sent something
	abortOnce sync.Once
	aborted   chan struct{}
	err       error // set once, before aborted is closed

	mu    sync.Mutex // guards all below
	over  int        // directions that have ended, or that nobody wants
	deaf  bool       // one of them is of the second kind
	limit *time.Timer
}

// isOver says that a direction is, which it may be once.
func (s *splice) isOver(deaf bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over++
	s.deaf = s.deaf || deaf
	if s.over == 2 && s.deaf {
		s.limit = time.AfterFunc(deafLimit, func() { s.abortWith(nil, ResetClosed) })
	}
}

// end waits for nothing any more.
func (s *splice) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit != nil {
		s.limit.Stop()
	}
}

func (s *splice) speak() { s.speakOnce.Do(func() { close(s.spoken) }) }

func (s *splice) abort(err error) { s.abortWith(err, ResetAborted) }

func (s *splice) abortWith(err error, code ResetCode) {
	s.abortOnce.Do(func() {
		s.err = err
		close(s.aborted)
		abort(s.a, code)
		abort(s.b, code)
	})
}

// copy moves bytes from src to dst until src ends. stalls is of src's session, if
// src is a stream. heard is called after the first byte or the end of src, mayWrite
// before each write.
func (s *splice) copy(dst, src net.Conn, stalls *Stalls, heard func(), mayWrite func() bool) (n int64) {
	pool := &buffers
	buf := pool.Get().(*[]byte)
	defer func() { pool.Put(buf) }()
	var deaf bool // dst wants no more
	var stall *stallWatch
	if _, isStream := src.(interface{ Reset(ResetCode) }); isStream && stalls != nil {
		stall = stalls.watch(func() { s.abortWith(ErrStalled, ResetStalled) })
		defer stalls.remove(stall)
	}
	var carries flow
	bulk := false
	for {
		asked := time.Now()
		nr, rerr := src.Read(*buf)
		waited := time.Since(asked)
		if heard != nil && (nr > 0 || rerr != nil) {
			heard()
			heard = nil
		}
		if nr > 0 && !deaf {
			if mayWrite != nil && !mayWrite() {
				return n
			}
			if is := carries.carried(nr, waited); is != bulk {
				bulk = is
				if st, ok := dst.(Stream); ok {
					st.SetBulk(bulk)
				}
			}
			nw, werr := stall.write(dst, (*buf)[:nr])
			n += nw
			if want := bufferFor(bulk, nr); want != pool {
				pool.Put(buf)
				pool = want
				buf = pool.Get().(*[]byte)
			}
			switch {
			case werr == nil:
			case stoppedReading(werr):
				// Go on reading, so that the end of src is seen.
				deaf = true
				s.isOver(true)
			default:
				s.abort(werr)
				return n
			}
		}
		if rerr == nil {
			continue
		}
		if !errors.Is(rerr, io.EOF) {
			s.abort(rerr)
			return n
		}
		if !deaf {
			if err := closeWrite(dst); err != nil {
				s.abort(err)
			}
			s.isOver(false)
		}
		return n
	}
}

// bufferFor is where the next buffer of a direction comes from, that has just
// read n bytes: a large one only while it is filled.
func bufferFor(bulk bool, n int) *sync.Pool {
	if bulk && n >= spliceBuffer/2 {
		return &bulkBuffers
	}
	return &buffers
}

// stoppedReading reports whether the other end of a stream said that it does
// not want the bytes, which says nothing about the other direction.
func stoppedReading(err error) bool {
	re, ok := errors.AsType[*ResetError](err)
	return ok && re.Remote
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		err := h.CloseWrite()
		if isNotConnected(err) {
			// The peer has closed both directions already; the reading side
			// sees that by itself.
			return nil
		}
		return err
	}
	return c.Close()
}

// Abort breaks c so that its peer does not take it for an orderly end. It may be
// called beside anything else.
func Abort(c net.Conn) { abort(c, ResetAborted) }

func abort(c net.Conn, code ResetCode) {
	switch c := c.(type) {
	case interface{ Reset(ResetCode) }:
		c.Reset(code)
		return
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0) // fails only on a closed socket
	}
	_ = c.Close()
}
