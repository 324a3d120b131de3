package tunnel

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// recording is a Stream that remembers whether it was bulk and how large the writes
// into it were.
type recording struct {
	net.Conn
	mu      sync.Mutex // guards all below
	bulk    []bool
	largest int
}

func (r *recording) CloseWrite() error { return nil }
func (r *recording) Reset(ResetCode)   { r.Close() }

func (r *recording) SetUrgency(int8) {}

func (r *recording) SetBulk(b bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bulk = append(r.bulk, b)
}

func (r *recording) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.largest = max(r.largest, len(p))
	return len(p), nil
}

func (r *recording) Read([]byte) (int, error) { return 0, io.EOF }

// A direction that carries bulk waits for others and copies in large
// pieces; one that has not does neither.
func TestSpliceTellsBulk(t *testing.T) {
	for _, tc := range []struct {
		name  string
		bytes int
		bulk  bool
	}{{"answer", bulkAfter, false}, {"copy", 4 * bulkAfter, true}} {
		t.Run(tc.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			client, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			src, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				client.Write(make([]byte, tc.bytes))
				client.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, client)
			}()
			end, other := net.Pipe()
			defer other.Close()
			st := &recording{Conn: end}
			if s := Splice(src, st, SpliceOptions{}); s.Err != nil || s.AToB != int64(tc.bytes) {
				t.Fatalf("%+v", s)
			}
			if demoted := len(st.bulk) == 1 && st.bulk[0]; demoted != tc.bulk || len(st.bulk) > 1 {
				t.Errorf("bulk: %v", st.bulk)
			}
			if !tc.bulk && st.largest > spliceBuffer {
				t.Errorf("a write of %d bytes for no bulk", st.largest)
			}
		})
	}
}

// gone is a stream whose other end has ended its direction and wants nothing.
type gone struct {
	net.Conn
	ends time.Duration // when its direction ends
}

func (g *gone) CloseWrite() error { return nil }
func (g *gone) Reset(ResetCode)   { g.Close() }
func (g *gone) SetUrgency(int8)   {}
func (g *gone) SetBulk(bool)      {}

func (g *gone) Write([]byte) (int, error) { return 0, &ResetError{Code: ResetClosed, Remote: true} }

func (g *gone) Read([]byte) (int, error) {
	time.Sleep(g.ends)
	return 0, io.EOF
}

// halfClosing is one end of a net.Pipe, which has no half-close.
type halfClosing struct{ net.Conn }

func (halfClosing) CloseWrite() error { return nil }

// A source that never ends must not be read for ever when nobody wants it.
func TestSpliceEndsWhatNobodyWants(t *testing.T) {
	for _, ends := range []time.Duration{0, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			end, source := net.Pipe()
			var wrote sync.WaitGroup
			wrote.Go(func() {
				for {
					if _, err := source.Write([]byte("x")); err != nil {
						return
					}
					time.Sleep(time.Millisecond)
				}
			})
			start := time.Now()
			s := Splice(halfClosing{end}, &gone{Conn: end, ends: ends}, SpliceOptions{})
			if d := time.Since(start) - ends; d < deafLimit || d > deafLimit+time.Second || s.Err != nil {
				t.Errorf("ended %s after the other direction: %+v", d, s)
			}
			wrote.Wait()
			source.Close()
		})
	}
}
