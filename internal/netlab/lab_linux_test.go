package netlab_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

var (
	prefixA = netip.MustParsePrefix("10.77.0.1/24")
	prefixB = netip.MustParsePrefix("10.77.0.2/24")
	portB   = netip.MustParseAddrPort("10.77.0.2:9")
)

// pair is two hosts and a link.
func pair(t *testing.T, seed uint64, s netlab.Shape) (a, b *netlab.Host, k *netlab.Link) {
	t.Helper()
	l := netlab.ForTest(t, seed)
	a, b = l.Host("a"), l.Host("b")
	return a, b, l.Link(netlab.Port{Host: a, Prefix: prefixA}, netlab.Port{Host: b, Prefix: prefixB}, s)
}

// sockets are a socket at each end; what it receives is b's business.
func sockets(t *testing.T, a, b *netlab.Host) (sa, sb *net.UDPConn) {
	t.Helper()
	sb, err := b.ListenUDP(portB)
	if err != nil {
		t.Fatal(err)
	}
	sa, err = a.ListenUDP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sa.Close(); sb.Close() })
	return sa, sb
}

// send sends n numbered packets of 500 bytes and returns the numbers that
// arrive, in order; a last packet over an ideal line ends it.
func send(t *testing.T, sa, sb *net.UDPConn, n int, k *netlab.Link) []byte {
	t.Helper()
	for i := range n {
		if _, err := sa.WriteToUDPAddrPort(append([]byte{byte(i)}, make([]byte, 499)...), portB); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, func() bool {
		s := k.AToB.Stats()
		return s.Delivered+s.Lost+s.TailDropped+s.Cut >= int64(n)
	})
	var got []byte
	buf := make([]byte, 1000)
	for range k.AToB.Stats().Delivered {
		if _, err := io.ReadFull(readerOf(sb), buf[:1]); err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[0])
	}
	return got
}

func readerOf(c *net.UDPConn) io.Reader {
	b := make([]byte, 1000)
	n, _, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return errReader{err}
	}
	return bytes.NewReader(b[:n])
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func TestLossIsSeeded(t *testing.T) {
	var runs [3][]byte
	for i, seed := range []uint64{7, 7, 8} {
		a, b, k := pair(t, seed, netlab.Shape{Loss: 0.3})
		sa, sb := sockets(t, a, b)
		runs[i] = send(t, sa, sb, 200, k)
	}
	if n := len(runs[0]); n < 100 || n > 180 {
		t.Errorf("%d of 200 packets passed 30 %% loss", n)
	}
	if !bytes.Equal(runs[0], runs[1]) {
		t.Errorf("the same seed lost other packets:\n%v\n%v", runs[0], runs[1])
	}
	if bytes.Equal(runs[0], runs[2]) {
		t.Error("another seed lost the same packets")
	}
}

func TestJitterReorders(t *testing.T) {
	a, b, k := pair(t, 1, netlab.Shape{Jitter: 20 * time.Millisecond})
	sa, sb := sockets(t, a, b)
	got := send(t, sa, sb, 100, k)
	seen := map[byte]bool{}
	late := 0
	for i, n := range got {
		seen[n] = true
		if i > 0 && n < got[i-1] {
			late++
		}
	}
	if len(seen) != 100 || late < 10 {
		t.Errorf("%d packets arrived, %d after a later one", len(seen), late)
	}
}

// The line takes its time and its queue holds what fits in: of 100 packets of
// 528 bytes (with headers) sent at once a line of 1 Mbit/s with 100 ms of queue
// takes 24 or so, not all and not one.
func TestQueueDropsItsTail(t *testing.T) {
	a, b, k := pair(t, 1, netlab.Shape{Rate: 1e6, Queue: 100 * time.Millisecond, Delay: 10 * time.Millisecond})
	sa, sb := sockets(t, a, b)
	start := time.Now()
	got := send(t, sa, sb, 100, k)
	if len(got) < 24 || len(got) == 100 {
		t.Errorf("%d of 100 packets passed", len(got))
	}
	// No upper bound: machines are slow, lines are not fast.
	if d, least := time.Since(start), time.Duration(len(got))*4224*time.Microsecond+10*time.Millisecond; d < least {
		t.Errorf("%d packets took %s, faster than the line (%s)", len(got), d, least)
	}
}

// What is larger than a line's MTU is lost without a word, what is larger than a
// device's cannot be sent.
func TestMTU(t *testing.T) {
	a, b, k := pair(t, 1, netlab.Shape{}.WithMTU(1400))
	sa, sb := sockets(t, a, b)
	raw, err := sa.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var refused error
	if err := errors.Join(raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}), refused); err != nil {
		t.Fatal(err)
	}
	const headers = 28
	for _, size := range []int{1401, 1400} {
		if _, err := sa.WriteToUDPAddrPort(make([]byte, size-headers), portB); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 1500)
	n, _, err := sb.ReadFromUDPAddrPort(buf)
	if err != nil || n != 1400-headers {
		t.Errorf("%d bytes, %v; want the smaller packet", n, err)
	}
	if s := k.AToB.Stats(); s.TooLarge != 1 || s.Largest != 1400 {
		t.Errorf("%+v", s)
	}
	if err := k.A.SetMTU(1300); err != nil {
		t.Fatal(err)
	}
	if _, err := sa.WriteToUDPAddrPort(make([]byte, 1400-headers), portB); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("a packet larger than the device takes: %v", err)
	}
}

func TestCutsAndBlocks(t *testing.T) {
	a, b, k := pair(t, 1, netlab.Shape{})
	sa, sb := sockets(t, a, b)
	ping := func() {
		t.Helper()
		if _, err := sa.WriteToUDPAddrPort([]byte("x"), portB); err != nil {
			t.Fatal(err)
		}
	}
	// blocked pings until the direction has dropped one more.
	blocked := func() {
		t.Helper()
		before := k.AToB.Stats()
		ping()
		waitFor(t, func() bool { return k.AToB.Stats().Cut > before.Cut })
		if got := k.AToB.Stats().Delivered; got != before.Delivered {
			t.Errorf("delivered %d packets through a block", got-before.Delivered)
		}
	}
	passes := func() {
		t.Helper()
		ping()
		if _, err := io.ReadAll(readerOf(sb)); err != nil {
			t.Fatal(err)
		}
	}
	passes()
	k.Cut()
	blocked()
	k.BToA.SetCut(false)
	blocked()
	k.Restore()
	passes()
	k.SetUDPBlocked(true)
	blocked()
	// TCP passes where UDP does not.
	ln, err := b.ListenTCP(portB)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := a.DialTCP(t.Context(), portB)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	k.Restore()
	passes()
}

func TestReaddressAndDown(t *testing.T) {
	a, b, k := pair(t, 1, netlab.Shape{})
	sa, sb := sockets(t, a, b)
	// from sends and returns the address that b sees.
	from := func() netip.Addr {
		t.Helper()
		if _, err := sa.WriteToUDPAddrPort([]byte("x"), portB); err != nil {
			t.Fatal(err)
		}
		_, ap, err := sb.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil {
			t.Fatal(err)
		}
		return ap.Addr().Unmap()
	}
	if got := from(); got != prefixA.Addr() {
		t.Errorf("from %s", got)
	}
	moved := netip.MustParsePrefix("10.77.0.4/24")
	if err := k.A.Readdress(moved); err != nil {
		t.Fatal(err)
	}
	if got := from(); got != moved.Addr() || k.A.Addr() != moved.Addr() {
		t.Errorf("from %s after the address changed", got)
	}
	if err := k.A.SetUp(false); err != nil {
		t.Fatal(err)
	}
	if _, err := sa.WriteToUDPAddrPort([]byte("x"), portB); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("error: %v", err)
	}
	if err := k.A.SetUp(true); err != nil {
		t.Fatal(err)
	}
	from()
}

func TestIPv6(t *testing.T) {
	l := netlab.ForTest(t, 1)
	a, b := l.Host("a"), l.Host("b")
	l.Link(netlab.Port{Host: a, Prefix: netip.MustParsePrefix("fd77::1/64")},
		netlab.Port{Host: b, Prefix: netip.MustParsePrefix("fd77::2/64")}, netlab.Shape{})
	ln, err := b.ListenTCP(netip.MustParseAddrPort("[fd77::2]:9"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := a.DialTCP(t.Context(), netip.MustParseAddrPort("[fd77::2]:9"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestPinTCP(t *testing.T) {
	a, b, k := pair(t, 1, netlab.Shape{})
	ln, err := b.ListenTCP(portB)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := k.A.PinTCP("reno"); err != nil {
		t.Fatal(err)
	}
	c, err := a.DialTCP(t.Context(), portB)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := congestion(t, c); got != "reno" {
		t.Errorf("congestion control %q", got)
	}
}

func TestCable(t *testing.T) {
	l := netlab.ForTest(t, 1)
	a, b := l.Host("a"), l.Host("b")
	l.Cable(netlab.Port{Host: a, Prefix: prefixA}, netlab.Port{Host: b, Prefix: prefixB}, 100)
	ln, err := b.ListenTCP(portB)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Write(make([]byte, 2<<20))
	}()
	start := time.Now()
	c, err := a.DialTCP(t.Context(), portB)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != 2<<20 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	// 16.8 Mbit less the burst take 150 ms at least.
	if d := time.Since(start); d < 150*time.Millisecond {
		t.Errorf("2 MiB at 100 Mbit/s took %s", d)
	}
}

// A process of a lab ends with it, and sees nothing but its host.
func TestStart(t *testing.T) {
	l := netlab.New(1, func(err error) { t.Fatal(err) })
	if err := netlab.Supported(); err != nil {
		t.Skip(err)
	}
	h := l.Host("a")
	out, err := exec.CommandContext(t.Context(), "readlink", h.Path()).Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "readlink /proc/self/ns/net; exec sleep 1000")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len(out))
	if _, err := io.ReadFull(stdout, line); err != nil {
		t.Fatal(err)
	}
	self, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(line); got != string(out) || strings.TrimSpace(got) == self {
		t.Errorf("child is in %q, the host is %q, the test in %q", got, out, self)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("child ended with %v", err)
	}
}
