package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-yamux/v5"
)

// errDeadline is what a net.Conn returns past its deadline.
var errDeadline = os.ErrDeadlineExceeded

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// muxStream is a Stream of a MuxSession.
type muxStream struct {
	y        *yamux.Stream
	s        *MuxSession
	opened   bool // by this end
	priority priority
	writeBy  *deadline

	// Whether each direction has ended; with both, the stream is forgotten.
	readDone, writeDone atomic.Bool

	wmu sync.Mutex // held during a write; guards cut and ended
	// cut: a write failed half way, so a FIN would pretend that all was sent.
	cut   bool
	ended bool

	mu       sync.Mutex // guards all below
	closing  bool
	reset    bool
	readBy   time.Time
	closeOne sync.Once
}

func (c *muxStream) Read(p []byte) (int, error) {
	c.mu.Lock()
	closing, expired := c.closing, !c.readBy.IsZero() && !time.Now().Before(c.readBy)
	c.mu.Unlock()
	switch {
	case closing:
		return 0, net.ErrClosed
	case expired:
		// yamux would read and then fail to tell the other end, whose window
		// would be smaller for ever.
		return 0, c.mapError(yamux.ErrTimeout)
	}
	n, err := c.y.Read(p)
	switch {
	case n > 0:
		if errors.Is(err, yamux.ErrTimeout) && !c.isClosing() {
			// The deadline passed just between the two, and that window is lost.
			c.Reset(ResetAborted)
		}
		return n, nil // any other error comes again
	case errors.Is(err, io.EOF):
		if !c.readDone.Load() && c.s.isDone() {
			// The FIN may be younger than the end of the session, whose streams
			// are cut, and a cut one must not look like one that was sent whole.
			return 0, c.s.Err()
		}
		c.readDone.Store(true)
		c.settle()
		return 0, io.EOF
	case err != nil:
		return 0, c.mapError(err)
	}
	return 0, nil
}

func (c *muxStream) Write(p []byte) (n int, err error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for len(p) > 0 {
		if c.ended || c.isClosing() {
			err = net.ErrClosed
			break
		}
		if !c.s.conn.gate.wait(c.priority.get(), c.writeBy.wait(), c.s.done) {
			err = c.mapError(yamux.ErrTimeout)
			break
		}
		k, werr := c.y.Write(p[:min(len(p), muxChunk)])
		c.s.conn.gate.queued(k)
		n, p = n+k, p[k:]
		if werr != nil {
			err = c.mapError(werr)
			break
		}
	}
	if err != nil && n > 0 {
		c.cut = true
	}
	return n, err
}

// CloseWrite sends FIN. It waits for a write in progress.
func (c *muxStream) CloseWrite() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.endLocked()
}

func (c *muxStream) endLocked() error {
	if c.ended {
		return nil
	}
	c.ended = true
	c.mu.Lock()
	wasReset := c.reset
	c.mu.Unlock()
	if wasReset {
		return nil
	}
	if c.cut {
		c.breakOff(ResetAborted)
		return nil
	}
	if c.s.isDone() {
		// The other end may not know yet, and would take FIN for the stream's own end.
		return c.s.Err()
	}
	err := c.y.CloseWrite()
	c.writeDone.Store(true)
	c.settle()
	if err == nil {
		return nil
	}
	err = c.mapError(err)
	if _, ok := errors.AsType[*ResetError](err); ok {
		return nil // the other end broke it first, which reads say
	}
	return err
}

// settle forgets the stream once both directions have ended.
func (c *muxStream) settle() {
	if c.readDone.Load() && c.writeDone.Load() {
		c.s.forget(c)
	}
}

// Close ends our direction with FIN, or with a reset when a write was cut short
// by it. What the other end still sends is read and dropped for a while, after
// which it is told to stop.
func (c *muxStream) Close() error {
	c.closeOne.Do(func() {
		c.mu.Lock()
		already := c.reset
		c.closing = true
		c.mu.Unlock()
		c.interrupt()
		if !already && (!c.readDone.Load() || !c.writeDone.Load()) {
			// Not here: sending FIN may have to wait, and Close may not.
			go c.finish()
		}
	})
	return nil
}

func (c *muxStream) finish() {
	c.wmu.Lock()
	err := c.endLocked()
	cut := c.cut
	c.wmu.Unlock()
	if err != nil || cut || c.readDone.Load() {
		c.s.forget(c)
		return
	}
	_ = c.y.SetReadDeadline(time.Now().Add(muxDrainTimeout)) // always nil
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for err == nil {
		_, err = c.y.Read(*buf)
	}
	if !errors.Is(err, io.EOF) {
		_ = c.y.ResetWithError(uint32(ResetClosed)) // always nil
	}
	c.s.forget(c)
}

func (c *muxStream) Reset(code ResetCode) {
	c.mu.Lock()
	again := c.reset
	c.closing, c.reset = true, true
	c.mu.Unlock()
	c.interrupt()
	if !again {
		c.breakOff(code)
	}
}

// breakOff sends a reset, which may have to wait and therefore does so beside
// the caller.
func (c *muxStream) breakOff(code ResetCode) {
	c.s.forget(c)
	go func() { _ = c.y.ResetWithError(uint32(code)) }() // always nil
}

// interrupt ends reads and writes in progress.
func (c *muxStream) interrupt() {
	c.writeBy.set(longAgo)
	_ = c.y.SetDeadline(longAgo) // always nil
}

func (c *muxStream) SetUrgency(u int8) { c.priority.set(u) }
func (c *muxStream) SetBulk(b bool)    { c.priority.bulk.Store(b) }

func (c *muxStream) LocalAddr() net.Addr  { return c.s.conn.LocalAddr() }
func (c *muxStream) RemoteAddr() net.Addr { return c.s.conn.RemoteAddr() }

func (c *muxStream) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *muxStream) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	c.readBy = t
	return c.y.SetReadDeadline(t)
}

func (c *muxStream) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	c.writeBy.set(t)
	return c.y.SetWriteDeadline(t)
}

func (c *muxStream) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// mapError gives our own Close the error that net.Conn documents for it, and
// every other its form in this package.
func (c *muxStream) mapError(err error) error {
	if c.isClosing() {
		return net.ErrClosed
	}
	err = c.s.mapError(err)
	if _, ok := errors.AsType[*ResetError](err); ok {
		c.s.forget(c) // a reset ends both directions
	}
	return err
}

// deadline is a time whose passing closes a channel.
type deadline struct {
	mu     sync.Mutex // guards all below
	timer  *time.Timer
	passed chan struct{}
}

func newDeadline() *deadline { return &deadline{passed: make(chan struct{})} }

// wait returns the channel of the deadline that is set now; a later one has
// another.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

// set replaces the deadline; zero: none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		closeOnce(d.passed) // it has passed, and its function waits for mu
	}
	d.timer = nil
	select {
	case <-d.passed:
		if !t.IsZero() && !time.Now().Before(t) {
			return
		}
		d.passed = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	passed := d.passed
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.passed == passed {
				closeOnce(passed)
			}
		})
		return
	}
	closeOnce(passed)
}

// closeOnce is called with the mutex held that guards c.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}
