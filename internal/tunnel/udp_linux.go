package tunnel

import (
	"encoding/binary"
	"net"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// groBatch is how many reads of the kernel one system call makes at most, as many
	// as quic-go's own (batchSize in sys_conn_oob.go, v0.65.0): a gateway's socket
	// has the packets of many nodes, which the kernel cannot put together.
	groBatch = 8
	// groBuffer holds the most the kernel puts into one read: an IP packet's
	// length is 16 bits.
	groBuffer = 1 << 16
	// groOOB is quic-go's size (oobBufferSize) and what the segment size takes.
	groOOB = 128 + 24
)

// packetReader reads packets for quic-go. From when a read has first found as many
// as it had room for, it reads what the kernel has put together (UDP_GRO, udp(7)):
// one walk through the network stack for up to 64 packets of one sender, where most
// of the processor time of a fast transfer goes. It hands them out one by one. Until
// then, for a handshake and a node that is idle, it holds no buffers for that. Not for
// two readers at once; quic-go has one for each socket.
type packetReader struct {
	socket *net.UDPConn
	conn   *ipv4.PacketConn // reads IPv6 as well; see quic-go
	gather *gatherer        // nil: what has come is read at once

	full   bool           // the last read found as many as it had room for
	tried  bool           // to have the kernel put packets together
	all    []ipv4.Message // the buffers for it; none: it does not
	read   []ipv4.Message // of all, what was read and is not yet handed out
	offset int            // in bytes, of what is not handed out in the first of read
	size   int            // in bytes, of the packets in the first of read
}

func newPacketReader(c *net.UDPConn, gathers bool) *packetReader {
	r := &packetReader{socket: c, conn: ipv4.NewPacketConn(c)}
	if gathers {
		r.gather = newGatherer()
	}
	return r
}

// ReadBatch is what quic-go reads with: it fills ms, whose messages have one
// buffer each, and returns how many it has filled, at least one. A packet that is
// larger than its buffer is cut, as by the kernel.
func (c *UDPConn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	if c.reader == nil {
		c.reader = newPacketReader(c.UDPConn, c.gathers)
	}
	n, err := c.reader.readBatch(ms, flags)
	if n > 0 && c.firstRead != nil {
		c.firstRead()
		c.firstRead = nil
	}
	return n, err
}

func (r *packetReader) readBatch(ms []ipv4.Message, flags int) (int, error) {
	if len(r.all) == 0 {
		n, err := r.receive(ms, flags)
		if err == nil && n == len(ms) && !r.tried {
			r.tried = true
			if r.putTogether() {
				r.addBuffer()
			}
		}
		return n, err
	}
	if len(r.read) == 0 {
		n, err := r.receive(r.all, flags)
		if n == 0 || err != nil {
			return n, err
		}
		r.read = r.all[:n]
	}
	n := 0
	for ; n < len(ms) && len(r.read) > 0; n++ {
		r.next(&ms[n])
	}
	// Nothing is left in the buffers that adding one could move.
	if len(r.read) == 0 && r.full && len(r.all) < groBatch {
		r.addBuffer()
	}
	return n, nil
}

// receive reads once from the kernel.
func (r *packetReader) receive(ms []ipv4.Message, flags int) (int, error) {
	if r.gather != nil {
		r.gather.before(r.full)
	}
	n, err := r.conn.ReadBatch(ms, flags)
	r.full = n == len(ms)
	if r.gather != nil && n > 0 {
		r.gather.after(n, time.Now())
	}
	return n, err
}

// putTogether has the kernel do it, from now on; false: it is older than 5.0. What
// waits already comes as it is.
func (r *packetReader) putTogether() bool {
	raw, err := r.socket.SyscallConn()
	if err != nil {
		return false // closed: the next read says so
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	})
	return err == nil && refused == nil
}

// addBuffer makes room for one more read at once.
func (r *packetReader) addBuffer() {
	r.all = append(r.all, ipv4.Message{Buffers: [][]byte{make([]byte, groBuffer)}, OOB: make([]byte, groOOB)})
}

// next hands out one packet of what was read.
func (r *packetReader) next(to *ipv4.Message) {
	from := &r.read[0]
	if r.offset == 0 {
		r.size, from.NN = takeSegmentSize(from.OOB[:from.NN])
		if r.size == 0 {
			r.size = from.N
		}
	}
	packet := from.Buffers[0][r.offset:min(r.offset+r.size, from.N)]
	to.N, to.NN = copy(to.Buffers[0], packet), copy(to.OOB, from.OOB[:from.NN])
	to.Addr, to.Flags = from.Addr, from.Flags
	r.offset += len(packet)
	if r.offset >= from.N {
		r.read, r.offset = r.read[1:], 0
	}
}

// takeSegmentSize takes the size of the packets that were put together out of
// control messages, and returns it and how long the messages are without it: what
// is left fits the buffer of who asked, as without GRO. 0: it was one packet.
func takeSegmentSize(oob []byte) (size, n int) {
	for rest := oob; len(rest) > 0; {
		h, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			return 0, len(oob) // who asked finds the same
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			at := len(oob) - len(rest)
			return max(0, int(int32(binary.NativeEndian.Uint32(data)))), at + copy(oob[at:], next)
		}
		rest = next
	}
	return 0, len(oob)
}
