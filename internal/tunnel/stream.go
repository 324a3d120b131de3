package tunnel

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// streamConn is a Stream over a QUIC stream.
//
// quic-go wants Close never to run beside Write. A net.Conn promises the
// opposite: Close is what unblocks a Write. So writes hold wmu, and Close first
// makes a blocked write give up.
type streamConn struct {
	s    *quic.Stream
	sess *quicSession

	priority priority

	wmu sync.Mutex // held during a write; guards cut and ended
	// cut: a write failed half way, so a FIN would pretend that all was sent.
	cut   bool
	ended bool

	mu       sync.Mutex // guards closing and reset
	closing  bool
	reset    bool
	closeOne sync.Once
}

func newStreamConn(s *quic.Stream, sess *quicSession) *streamConn {
	c := &streamConn{s: s, sess: sess}
	c.priority.set(3) // QUIC's own default
	return c
}

func (c *streamConn) Read(p []byte) (int, error) {
	n, err := c.s.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.mapError(err)
	}
	return n, err
}

func (c *streamConn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.ended || c.isClosing() {
		return 0, net.ErrClosed
	}
	n, err := c.s.Write(p)
	if err != nil {
		if n < len(p) && n > 0 {
			c.cut = true
		}
		err = c.mapError(err)
	}
	return n, err
}

// CloseWrite sends FIN. It waits for a write in progress.
func (c *streamConn) CloseWrite() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.endLocked()
}

func (c *streamConn) endLocked() error {
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
		c.s.CancelWrite(quic.StreamErrorCode(ResetAborted))
		return nil
	}
	if err := c.s.Close(); err != nil && c.s.Context().Err() == nil {
		return c.mapError(err)
	}
	return nil // or the write side had ended before: the other end stopped it, or Reset ran beside us
}

// Close ends our direction with FIN, or with a reset when a write was cut short
// by it, and tells the other end to stop sending.
func (c *streamConn) Close() error {
	var err error
	c.closeOne.Do(func() {
		c.mu.Lock()
		c.closing = true
		// Inside mu, so that a SetWriteDeadline beside us cannot undo it.
		_ = c.s.SetWriteDeadline(time.Unix(1, 0))
		c.mu.Unlock()
		c.s.CancelRead(quic.StreamErrorCode(ResetClosed))
		c.wmu.Lock()
		defer c.wmu.Unlock()
		err = c.endLocked()
	})
	return err
}

func (c *streamConn) Reset(code ResetCode) {
	c.mu.Lock()
	c.closing, c.reset = true, true
	c.mu.Unlock()
	// Both may be called at any time and after each other (quic-go: no-ops then).
	c.s.CancelWrite(quic.StreamErrorCode(code))
	c.s.CancelRead(quic.StreamErrorCode(code))
}

func (c *streamConn) SetUrgency(u int8) {
	c.priority.set(u)
	c.sess.setPriority(c.s, &c.priority)
}

func (c *streamConn) SetBulk(b bool) {
	c.priority.bulk.Store(b)
	c.sess.setPriority(c.s, &c.priority)
}

func (c *streamConn) LocalAddr() net.Addr  { return c.sess.c.LocalAddr() }
func (c *streamConn) RemoteAddr() net.Addr { return c.sess.c.RemoteAddr() }

func (c *streamConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *streamConn) SetReadDeadline(t time.Time) error { return c.s.SetReadDeadline(t) }

func (c *streamConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	return c.s.SetWriteDeadline(t)
}

func (c *streamConn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// mapError gives our own Close the error that net.Conn documents for it.
func (c *streamConn) mapError(err error) error {
	if c.isClosing() {
		return net.ErrClosed
	}
	if se, ok := errors.AsType[*quic.StreamError](err); ok {
		return &ResetError{Code: ResetCode(se.ErrorCode), Remote: se.Remote}
	}
	return closeError(err)
}
