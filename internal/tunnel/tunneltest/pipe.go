package tunneltest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// pipeBuffer is how much each direction of a pipe holds, as a socket would.
const pipeBuffer = 64 << 10

// Pipe returns the two ends of an in-memory connection that behaves like TCP:
// buffered, with half-close, deadlines and reset. It works inside
// testing/synctest, as sockets do not.
func Pipe() (*PipeConn, *PipeConn) {
	return PipeBetween(pipeAddr{}, pipeAddr{})
}

// PipeBetween is Pipe with the addresses of its ends.
func PipeBetween(a, b net.Addr) (*PipeConn, *PipeConn) {
	ab, ba := newHalf(), newHalf()
	return &PipeConn{r: ba, w: ab, local: a, remote: b}, &PipeConn{r: ab, w: ba, local: b, remote: a}
}

// PipeConn is one end of a Pipe.
type PipeConn struct {
	r, w          *half
	local, remote net.Addr
	mu            sync.Mutex
	reset         bool
}

// Stall holds back what is under way in both directions, or lets it go on.
func (c *PipeConn) Stall(stalled bool) {
	for _, h := range []*half{c.r, c.w} {
		h.mu.Lock()
		h.stalled = stalled
		h.change()
		h.mu.Unlock()
	}
}

// Read implements net.Conn.
func (c *PipeConn) Read(p []byte) (int, error) { return c.r.read(p) }

// Write implements net.Conn.
func (c *PipeConn) Write(p []byte) (int, error) { return c.w.write(p) }

// CloseWrite ends our direction with EOF.
func (c *PipeConn) CloseWrite() error { c.w.end(nil, io.EOF); return nil }

// SetLinger with 0 makes Close a reset.
func (c *PipeConn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset = sec == 0
	return nil
}

// Close implements net.Conn. What was written is still delivered.
func (c *PipeConn) Close() error {
	c.mu.Lock()
	reset := c.reset
	c.mu.Unlock()
	if reset {
		c.w.breakWith(syscall.ECONNRESET)
	} else {
		c.w.end(net.ErrClosed, io.EOF)
	}
	c.r.close()
	return nil
}

// LocalAddr implements net.Conn.
func (c *PipeConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *PipeConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *PipeConn) SetDeadline(t time.Time) error {
	c.r.setDeadline(&c.r.readBy, t)
	c.w.setDeadline(&c.w.writeBy, t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *PipeConn) SetReadDeadline(t time.Time) error { c.r.setDeadline(&c.r.readBy, t); return nil }

// SetWriteDeadline implements net.Conn.
func (c *PipeConn) SetWriteDeadline(t time.Time) error { c.w.setDeadline(&c.w.writeBy, t); return nil }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// half is one direction.
type half struct {
	mu              sync.Mutex
	changed         chan struct{} // closed and replaced at each change
	buf             []byte
	readErr         error // after buf
	writeErr        error
	readBy, writeBy time.Time
	stalled         bool // nothing arrives
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) change() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) setDeadline(which *time.Time, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*which = t
	h.change()
}

// end: the writer is done; the reader gets what is there and then readErr.
func (h *half) end(writeErr, readErr error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readErr == nil {
		h.readErr = readErr
	}
	if h.writeErr == nil {
		if writeErr == nil {
			writeErr = syscall.EPIPE
		}
		h.writeErr = writeErr
	}
	h.change()
}

// breakWith: both see err at once and what was on its way is lost.
func (h *half) breakWith(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf, h.readErr = nil, err
	if h.writeErr == nil {
		h.writeErr = err
	}
	h.change()
}

// close: the reader is gone; writing to it is a reset.
func (h *half) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf, h.readErr = nil, net.ErrClosed
	if h.writeErr == nil {
		h.writeErr = syscall.ECONNRESET
	}
	h.change()
}

func (h *half) read(p []byte) (int, error) {
	for {
		h.mu.Lock()
		if expired(h.readBy) {
			h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		if len(h.buf) > 0 && !h.stalled {
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.change()
			h.mu.Unlock()
			return n, nil
		}
		if h.readErr != nil && (!h.stalled || errors.Is(h.readErr, net.ErrClosed)) {
			defer h.mu.Unlock()
			return 0, h.readErr
		}
		changed, by := h.changed, h.readBy
		h.mu.Unlock()
		wait(changed, by)
	}
}

func (h *half) write(p []byte) (n int, err error) {
	for {
		h.mu.Lock()
		if expired(h.writeBy) {
			h.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		}
		if h.writeErr != nil {
			defer h.mu.Unlock()
			return n, h.writeErr
		}
		if room := pipeBuffer - len(h.buf); room > 0 && len(p) > 0 {
			k := min(room, len(p))
			h.buf = append(h.buf, p[:k]...)
			p, n = p[k:], n+k
			h.change()
		}
		changed, by := h.changed, h.writeBy
		h.mu.Unlock()
		if len(p) == 0 {
			return n, nil
		}
		wait(changed, by)
	}
}

func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func wait(changed <-chan struct{}, by time.Time) {
	if by.IsZero() {
		<-changed
		return
	}
	t := time.NewTimer(time.Until(by))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
}

// Listener hands out connections made with its Dial.
type Listener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
	addr  net.Addr
}

// NewListener makes a listener; nothing runs for it.
func NewListener() *Listener {
	return &Listener{conns: make(chan net.Conn), done: make(chan struct{}), addr: pipeAddr{}}
}

// Dial connects to the listener.
func (l *Listener) Dial() (*PipeConn, error) { return l.dial(pipeAddr{}) }

func (l *Listener) dial(from net.Addr) (*PipeConn, error) {
	a, b := PipeBetween(from, l.addr)
	select {
	case l.conns <- b:
		return a, nil
	case <-l.done:
		return nil, syscall.ECONNREFUSED
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.addr }
