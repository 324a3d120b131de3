package tunnel_test

import (
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// narrow is a socket on a path that loses what is too large for it without a word.
type narrow struct {
	net.PacketConn
	udp     *net.UDPConn // on which quic-go forbids fragments; nothing is sent there
	limit   atomic.Int64 // bytes; 0: none
	largest atomic.Int64 // bytes of a packet that got through
}

func newNarrow(t *testing.T, c net.PacketConn) *narrow {
	t.Helper()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	return &narrow{PacketConn: c, udp: udp}
}

func (n *narrow) SyscallConn() (syscall.RawConn, error) { return n.udp.SyscallConn() }

func (n *narrow) WriteTo(b []byte, to net.Addr) (int, error) {
	if limit := n.limit.Load(); limit > 0 && int64(len(b)) > limit {
		return len(b), nil
	}
	n.largest.Store(max(n.largest.Load(), int64(len(b)))) // one goroutine writes
	return n.PacketConn.WriteTo(b, to)
}

// A session whose packets have grown goes on, with all its streams, when the path
// comes to carry smaller ones only, whichever end's packets these are; and finds out
// how large they may be.
func TestPathMTUShrinks(t *testing.T) {
	const grown = 1430 // and more is what discovery makes of a path without a limit
	for _, tc := range []struct {
		name           string
		client, server int64 // bytes, the limit of what each sends; 0: none
		moved          bool  // the client's machine has seen its way out change
	}{
		{name: "both ways", client: 1372, server: 1372},
		{name: "from the client", client: 1372},
		{name: "from the server", server: 1372},
		{name: "to the least", client: 1232, server: 1232},
		{name: "the client knows", client: 1372, moved: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := tunneltest.NewNetwork(t, 30*time.Millisecond)
				cc, sc := newNarrow(t, n.Listen(clientAddr)), newNarrow(t, n.Listen(serverAddr))
				client, server, end := quicPairOn(t, tunneltest.NewCA(t), cc, sc)
				defer end()
				history := tunnel.NewHistory(time.Now)
				tunnel.Keep(client, history, 1)
				go echoAll(t, server)
				idle, err := client.Open()
				if err != nil {
					t.Fatal(err)
				}
				defer idle.Close()
				roundTrip(t, idle, 1)
				for cc.largest.Load() < grown || sc.largest.Load() < grown {
					bulk(t, client, 1<<20)
				}
				bulk(t, client, 1<<20)

				cc.limit.Store(tc.client)
				sc.limit.Store(tc.server)
				cc.largest.Store(0)
				sc.largest.Store(0)
				if tc.moved {
					tunnel.Moved(client)
				}
				start := time.Now()
				bulk(t, client, 1<<20)
				took := time.Since(start)
				t.Logf("1 MiB there and back in %s", took)
				if took > 5*time.Second {
					t.Errorf("1 MiB there and back took %s", took)
				}
				roundTrip(t, idle, 1)
				events := history.Events()
				if got, want := count(events, tunnel.EventBlackHole) > 0, tc.client > 0 && !tc.moved; got != want || count(events, tunnel.EventSize) == 0 {
					t.Errorf("a black hole in the client's history: %t, want %t; %+v", got, want, events)
				}

				discover(t, client)
				for what, c := range map[string]*narrow{"client": cc, "server": sc} {
					limit, got := c.limit.Load(), c.largest.Load()
					if want := max(limit, 1232) - 60; limit > 0 && got < want || limit == 0 && got < grown {
						t.Errorf("packets of the %s do not grow beyond %d bytes, with a limit of %d", what, got, limit)
					}
				}

				// As the agent does when its machine's way out changes. The other end
				// would see another address.
				for _, c := range []*narrow{cc, sc} {
					c.limit.Store(0)
					c.largest.Store(0)
				}
				tunnel.Moved(client)
				tunnel.Moved(server)
				discover(t, client)
				if c, s := cc.largest.Load(), sc.largest.Load(); c < grown || s < grown {
					t.Errorf("on a better path packets have at most %d and %d bytes", c, s)
				}
				roundTrip(t, idle, 1)
			})
		})
	}
}

// A session that is new on a path of the least MTU works.
func TestSmallestPathMTU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := tunneltest.NewNetwork(t, 30*time.Millisecond)
		cc, sc := newNarrow(t, n.Listen(clientAddr)), newNarrow(t, n.Listen(serverAddr))
		// 1280 bytes less the headers of IPv6 and UDP.
		cc.limit.Store(1232)
		sc.limit.Store(1232)
		client, server, end := quicPairOn(t, tunneltest.NewCA(t), cc, sc)
		defer end()
		go echoAll(t, server)
		bulk(t, client, 1<<20)
	})
}

// discover carries something for as long as both ends take to find how large packets
// may be: some ten probes with five round trips in between.
func discover(t *testing.T, s tunnel.Session) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		bulk(t, s, 64<<10)
	}
}

// echoAll answers all streams with what they carry until the session ends.
func echoAll(t *testing.T, s tunnel.Session) {
	for {
		st, err := s.Accept(t.Context())
		if err != nil {
			return
		}
		go func() {
			defer st.Close()
			_, _ = io.Copy(st, st) // who awaits the answer sees that it ends
		}()
	}
}

// roundTrip sends n bytes and reads as many.
func roundTrip(t *testing.T, st tunnel.Stream, n int) {
	t.Helper()
	// Small packets alone can keep a session that carries nothing for ever.
	if err := st.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := st.Write(make([]byte, n))
		wrote <- err
	}()
	if _, err := io.ReadFull(st, make([]byte, n)); err != nil {
		t.Fatalf("read: %v", err)
	}
	if err := <-wrote; err != nil {
		t.Fatalf("write: %v", err)
	}
}

// bulk does so on a stream of its own.
func bulk(t *testing.T, s tunnel.Session, n int) {
	t.Helper()
	st, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	roundTrip(t, st, n)
}
