package tunnel

import (
	"io"
	"net"
	"sync"
	"testing"
)

// recording is a Stream that remembers its urgencies and how large the writes
// into it were.
type recording struct {
	net.Conn
	mu        sync.Mutex // guards all below
	urgencies []int8
	largest   int
}

func (r *recording) CloseWrite() error { return nil }
func (r *recording) Reset(ResetCode)   { r.Close() }

func (r *recording) SetUrgency(u int8) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.urgencies = append(r.urgencies, u)
}

func (r *recording) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.largest = max(r.largest, len(p))
	return len(p), nil
}

func (r *recording) Read([]byte) (int, error) { return 0, io.EOF }

// A direction that has carried bulkAfter waits for others and copies in large
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
			if demoted := len(st.urgencies) == 1 && st.urgencies[0] == urgencyBulk; demoted != tc.bulk || len(st.urgencies) > 1 {
				t.Errorf("urgencies %v", st.urgencies)
			}
			if !tc.bulk && st.largest > spliceBuffer {
				t.Errorf("a write of %d bytes for no bulk", st.largest)
			}
		})
	}
}
