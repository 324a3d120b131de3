package tunnel

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crypto/tls"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

func loopback(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// The kernel refuses port 0 (EINVAL) and too large a packet (EMSGSIZE): the first
// is loss, the second is not ours to hide.
func TestSendErrors(t *testing.T) {
	c := WrapUDP(loopback(t), nil)
	nowhere := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	if n, err := c.WriteTo([]byte("abc"), nowhere); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, oobn, err := c.WriteMsgUDP([]byte("abc"), nil, nowhere); n != 3 || oobn != 0 || err != nil {
		t.Errorf("%d, %d, %v", n, oobn, err)
	}
	if n, _, err := c.WriteMsgUDPAddrPort([]byte("abc"), nil, nowhere.AddrPort()); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if d := c.lost.Counts(); d[syscall.EINVAL] != 3 || len(d) != 1 {
		t.Errorf("dropped: %v", d)
	}
	if _, err := c.WriteTo(make([]byte, 70_000), c.LocalAddr()); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("error: %v", err)
	}
	c.Close()
	if _, err := c.WriteTo([]byte("abc"), c.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error: %v", err)
	}
	if WrapPacketConn(c, nil) != net.PacketConn(c) {
		t.Error("wrapped twice")
	}
}

// A session outlives send errors on a real socket, at both ends.
func TestSessionOutlivesSendErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENETUNREACH, syscall.EPERM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL} {
		t.Run(errno.Error(), func(t *testing.T) {
			var broken atomic.Bool
			fault := func() error {
				if broken.Load() {
					return &net.OpError{Op: "write", Net: "udp", Err: &wrapped{errno}}
				}
				return nil
			}
			ca := tunneltest.NewCA(t)
			us, uc := WrapUDP(loopback(t), nil), WrapUDP(loopback(t), nil)
			us.fault, uc.fault = fault, fault
			st, ct := &quic.Transport{Conn: us}, &quic.Transport{Conn: uc}
			defer st.Close()
			defer ct.Close()
			ln, err := st.Listen(&tls.Config{
				NextProtos: []string{ALPN}, Certificates: []tls.Certificate{*ca.Gateway(t, ServerName)},
			}, GatewayConfig())
			if err != nil {
				t.Fatal(err)
			}
			cc, err := ct.Dial(t.Context(), us.LocalAddr(), &tls.Config{NextProtos: []string{ALPN}, RootCAs: ca.Pool, ServerName: ServerName}, AgentConfig())
			if err != nil {
				t.Fatal(err)
			}
			sc, err := ln.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s, err := NewQUICSession(cc).Open()
			if err != nil {
				t.Fatal(err)
			}
			broken.Store(true)
			if _, err := s.Write([]byte("into the void")); err != nil {
				t.Fatal(err)
			}
			// Until both sockets have refused something: the write, and the
			// server's own traffic (it pings here, which it otherwise does not).
			ping, err := sc.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			ping.Write([]byte("x"))
			deadline := time.Now().Add(10 * time.Second)
			for tick := time.Tick(time.Millisecond); uc.lost.Counts()[errno] == 0 || us.lost.Counts()[errno] == 0; <-tick {
				if time.Now().After(deadline) {
					t.Fatal("nothing was dropped")
				}
			}
			broken.Store(false)
			got, err := NewQUICSession(sc).Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 13)
			if _, err := got.Read(b); err != nil || string(b) != "into the void" {
				t.Errorf("%q, %v", b, err)
			}
			cc.CloseWithError(0, "")
			sc.CloseWithError(0, "")
		})
	}
}

// wrapped is an error as the net package returns it.
type wrapped struct{ errno syscall.Errno }

func (w *wrapped) Error() string { return "sendmsg: " + w.errno.Error() }
func (w *wrapped) Unwrap() error { return w.errno }
