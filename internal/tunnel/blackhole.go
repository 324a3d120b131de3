package tunnel

// blackHole notices that large packets of a session do not arrive any more while
// small ones may: the path has come to pass through a link with a smaller MTU (an
// LTE router, a VPN), and no ICMP message says so (RFC 8899 section 4.3). quic-go
// would send packets of the size that it found out once for as long as the session
// lives, and its probes after a timeout are as large.
//
// Three strikes make a hole. A strike is a probe timeout while a large packet has
// not been heard of, or a large packet that is lost, and counts once for all that
// had been sent until then; a packet that arrives and is as large takes all back.
// Hardly anything but a hole makes three: a line that loses a packet in twenty does so
// once in eight thousand, if it carries little, and never if it carries much. An outage
// does, if something is under way, and may be on another path afterwards. What a
// mistake costs is packets that are a seventh smaller until larger ones are found to
// arrive again, within seconds.
//
// Probes of a larger size, which are lost on purpose, do not count: quic-go does not
// report their loss, and they are larger than all else.
type blackHole struct {
	size int64 // bytes of the largest packets but for such probes

	newest int64 // number of the packet that was sent last
	large  struct {
		sent, acked int64 // numbers of the last ones
		size        int64 // of the one sent last
	}
	strikes int
	least   int64 // bytes, of the smallest packet of the strikes
	counted int64 // up to this number packets have struck
}

// holeStrikes is how many make a hole: MAX_PROBES of RFC 8899 section 5.1.2.
const holeStrikes = 3

// isLarge reports whether a packet says something, and can be made smaller.
func (b *blackHole) isLarge(bytes int64) bool { return bytes > packetSize && bytes <= b.size }

func (b *blackHole) onSent(number, bytes int64) {
	b.newest = number
	if b.isLarge(bytes) {
		b.large.sent, b.large.size = number, bytes
	}
}

func (b *blackHole) onAcked(number, bytes int64) {
	if b.isLarge(bytes) {
		b.large.acked = max(b.large.acked, number)
	}
	if bytes >= b.least {
		b.strikes, b.least = 0, 0
	}
}

// onLost is for packets that later ones which arrived have overtaken.
func (b *blackHole) onLost(number, bytes int64) {
	if b.isLarge(bytes) && number > b.counted {
		b.strike(bytes)
	}
}

// onTimeout is for a time in which nothing was acknowledged.
func (b *blackHole) onTimeout() {
	if b.large.sent > max(b.large.acked, b.counted) {
		b.strike(b.large.size)
	}
}

func (b *blackHole) strike(bytes int64) {
	if b.strikes == 0 || bytes < b.least {
		b.least = bytes
	}
	b.strikes++
	b.counted = b.newest
}

// found is to be asked when all of an acknowledgement has been told.
func (b *blackHole) found() bool { return b.strikes >= holeStrikes }

// resized is for a change of the size of packets.
func (b *blackHole) resized(size int64) {
	b.size = size
	if size <= packetSize {
		b.strikes, b.least, b.counted = 0, 0, b.newest
	}
}
