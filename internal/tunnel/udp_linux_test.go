package tunnel

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// What leaves in one piece (UDP_SEGMENT) arrives in one over the loopback: it is
// read packet by packet, with sender and ECN bits, into buffers of quic-go's size
// and number, and so is what comes alone.
func TestReadsOfPacketsPutTogether(t *testing.T) {
	const size, count, last = 1200, 20, 500
	from, to := loopback(t), loopback(t)
	raw, err := to.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1); err != nil {
			t.Error(err)
		}
	})
	raw, err = from.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 2); err != nil { // ECN-capable, RFC 3168
			t.Error(err)
		}
	})
	c := WrapUDP(to, nil)
	c.reader = newPacketReader(to, false)
	c.reader.tried = true
	if !c.reader.putTogether() {
		t.Skip("the kernel has no UDP_GRO")
	}
	for range groBatch {
		c.reader.addBuffer()
	}
	sent := make([]byte, count*size+last)
	for i := range sent {
		sent[i] = byte(i / size)
	}
	if _, _, err := from.WriteMsgUDP(sent, segmentSize(size), to.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	if _, err := from.WriteTo(nil, to.LocalAddr()); err != nil { // a packet may be empty
		t.Fatal(err)
	}
	if _, err := from.WriteTo([]byte("alone"), to.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	to.SetReadDeadline(time.Now().Add(10 * time.Second))
	var got [][]byte
	calls := 0
	for len(got) < count+3 {
		ms := packetBuffers(8, 1452)
		n, err := c.ReadBatch(ms, 0)
		if err != nil || n == 0 {
			t.Fatalf("after %d packets: %d, %v", len(got), n, err)
		}
		calls++
		for _, m := range ms[:n] {
			if m.Addr.String() != from.LocalAddr().String() {
				t.Errorf("packet %d came from %v", len(got), m.Addr)
			}
			if ecn := ecnOf(t, m.OOB[:m.NN]); ecn != 2 {
				t.Errorf("packet %d has ECN bits %d", len(got), ecn)
			}
			got = append(got, m.Buffers[0][:m.N])
		}
	}
	for i, p := range got[:count+1] {
		want := sent[i*size : min((i+1)*size, len(sent))]
		if !bytes.Equal(p, want) {
			t.Errorf("packet %d: %d bytes, the first %v; want %d", i, len(p), p[:1], len(want))
		}
	}
	if len(got[count+1]) != 0 || string(got[count+2]) != "alone" {
		t.Errorf("the last two: %q", got[count+1:])
	}
	if calls > 4 {
		t.Errorf("%d reads: the packets were not put together", calls)
	}
	c.Close()
	if n, err := c.ReadBatch(packetBuffers(8, 1452), 0); n != 0 || err == nil {
		t.Errorf("closed: %d, %v", n, err)
	}
}

// Packets are put together, and buffers made for it, once as many have come as a
// read has room for; then for as many reads at once as are needed.
func TestPacketsArePutTogetherWhenMany(t *testing.T) {
	from, to := loopback(t), loopback(t)
	c := WrapUDP(to, nil)
	send := func(n int) {
		t.Helper()
		for i := range n {
			if _, err := from.WriteTo([]byte{byte(i)}, to.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
	}
	receive := func(n int) {
		t.Helper()
		to.SetReadDeadline(time.Now().Add(10 * time.Second))
		for got := 0; got < n; {
			ms := packetBuffers(8, 100)
			k, err := c.ReadBatch(ms, 0)
			if err != nil || k == 0 {
				t.Fatalf("%d, %v", k, err)
			}
			for _, m := range ms[:k] {
				if m.N != 1 || m.Buffers[0][0] != byte(got) {
					t.Errorf("packet %d: %v", got, m.Buffers[0][:m.N])
				}
				got++
			}
		}
	}
	for range 20 {
		send(7)
		receive(7)
	}
	if c.reader.tried || len(c.reader.all) > 0 {
		t.Errorf("few packets: %d buffers", len(c.reader.all))
	}
	send(200)
	receive(200)
	switch n := len(c.reader.all); {
	case !c.reader.tried:
		t.Error("many packets are not put together")
	case n == 0:
		t.Skip("the kernel has no UDP_GRO")
	case n != groBatch:
		t.Errorf("%d buffers", n)
	}
}

// Without the kernel's help it reads the same.
func TestReadsOfAnOldKernel(t *testing.T) {
	from, to := loopback(t), loopback(t)
	c := WrapUDP(to, nil)
	c.reader = newPacketReader(to, false)
	c.reader.tried = true // and it was refused
	for range 4 {
		if _, err := from.WriteTo([]byte("abc"), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		ms := packetBuffers(2, 100)
		if n, err := c.ReadBatch(ms, 0); n != 2 || err != nil || string(ms[0].Buffers[0][:ms[0].N]) != "abc" {
			t.Errorf("%d, %v, %q", n, err, ms[0].Buffers[0][:ms[0].N])
		}
	}
}

// Whatever control messages there are, they are read within their bounds, and what
// is not a segment size stays.
func FuzzTakeSegmentSize(f *testing.F) {
	tos := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 7})
	f.Add(bytes.Clone(tos))
	f.Add(append(bytes.Clone(tos), groSize(1200)...))
	f.Add(append(groSize(1200), tos...))
	f.Add(groSize(-1))
	f.Add(groSize(1200)[:20])
	f.Fuzz(func(t *testing.T, oob []byte) {
		in := bytes.Clone(oob)
		size, n := takeSegmentSize(oob)
		if size < 0 || n > len(oob) {
			t.Errorf("size %d, %d of %d bytes", size, n, len(oob))
		}
		if size == 0 && n == len(in) && !bytes.Equal(oob, in) {
			t.Error("control messages without a size have changed")
		}
	})
}

func packetBuffers(n, size int) []ipv4.Message {
	ms := make([]ipv4.Message, n)
	for i := range ms {
		ms[i] = ipv4.Message{Buffers: [][]byte{make([]byte, size)}, OOB: make([]byte, 128)}
	}
	return ms
}

// segmentSize asks the kernel to send packets of that size.
func segmentSize(n uint16) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	h, data := header(b)
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(data, n)
	return b
}

// groSize is what the kernel says of packets of that size that it has put together.
func groSize(n int32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h, data := header(b)
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_GRO
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(data, uint32(n))
	return b
}

func header(b []byte) (*unix.Cmsghdr, []byte) {
	return (*unix.Cmsghdr)(unsafe.Pointer(&b[0])), b[unix.CmsgLen(0):]
}

func ecnOf(t *testing.T, oob []byte) byte {
	t.Helper()
	for len(oob) > 0 {
		h, data, next, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			t.Fatal(err)
		}
		if h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS {
			return data[0] & 3
		}
		oob = next
	}
	return 0
}
