package tunnel

import (
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
)

const (
	// KeepAlive is how often an idle agent sends: a third of IdleTimeout, so that
	// two lost in a row end nothing, and below the 30 s after which common NATs
	// forget a UDP mapping. It is 60 to 70 bytes with IP and UDP, and as much
	// back: some 1.9 MB a day for a node that does nothing else.
	KeepAlive = 6 * time.Second
	// SignOfLife is how often an agent says something whatever there is to say:
	// ahead of QUIC's own keepalive, which then has nothing to do. See Pad.
	SignOfLife = KeepAlive - 500*time.Millisecond
	// IdleTimeout ends a session that heard nothing. It is what a silent cut
	// takes to be noticed: a node counts as cut off 20 s after its last session,
	// and neither can begin before a dead session is known to be one. A shorter
	// outage cuts nothing.
	IdleTimeout = 20 * time.Second
	// HandshakeTimeout ends a QUIC handshake in which the other end is silent.
	HandshakeTimeout = 5 * time.Second
	// MaxStreams is how many carried connections each end may have open on one
	// session: a full node (110 pods) with several watches, logs and proxied
	// requests for each pod stays below it.
	MaxStreams = 1024

	// streamWindow is what a stream may hold unread before its reader shows that
	// it reads. Slow start (40 KiB, then double each round trip) reaches it no
	// sooner than the window's own growth raises it, so that a larger one would
	// only give more to those that never read.
	streamWindow = 128 << 10
	// maxStreamWindow is what it may grow to: 500 Mbit/s at 60 ms.
	maxStreamWindow = 4 << 20
	// Connection windows. quic-go raises the window of a connection only when
	// the application reads, so that streams whose readers never read use it up
	// and then block all others. It is credit, not memory, so it begins at its
	// end: room for 90 such streams at the gateway (each takes streamWindow and
	// what buffers behind it took), which must bound what ten thousand nodes can
	// make it hold, and for twice as many at the agent, which has one session.
	// Streams that grew before they stalled take more: see the package comment.
	gatewayConnWindow = 16 << 20
	agentConnWindow   = 32 << 20

	// Between gateways: streams of all nodes share one connection, of which there
	// are few, and a gateway that is gone must not hold up dials for long.
	meshConnWindow = 64 << 20
	meshStreams    = 1 << 16
	meshKeepAlive  = time.Second
	meshIdle       = 5 * time.Second

	// packetSize fits a path MTU of 1280 with IPv4 and IPv6 headers. Discovery
	// raises it from there; beginning higher loses whole handshakes on paths
	// that drop what is too large without a word.
	packetSize = 1232
)

// GatewayConfig is the QUIC configuration of a gateway. The agent keeps the
// session alive, since it is the one behind a NAT.
func GatewayConfig() *quic.Config {
	c := baseConfig()
	c.InitialConnectionReceiveWindow = gatewayConnWindow
	c.MaxConnectionReceiveWindow = gatewayConnWindow
	return c
}

// AgentConfig is the QUIC configuration of an agent.
func AgentConfig() *quic.Config {
	c := baseConfig()
	c.InitialConnectionReceiveWindow = agentConnWindow
	c.MaxConnectionReceiveWindow = agentConnWindow
	c.KeepAlivePeriod = KeepAlive
	return c
}

// MeshConfig is the QUIC configuration between gateways, at both ends.
func MeshConfig() *quic.Config {
	c := baseConfig()
	c.InitialConnectionReceiveWindow = meshConnWindow
	c.MaxConnectionReceiveWindow = meshConnWindow
	c.MaxIncomingStreams = meshStreams
	c.KeepAlivePeriod = meshKeepAlive
	c.MaxIdleTimeout = meshIdle
	return c
}

func baseConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:       HandshakeTimeout,
		MaxIdleTimeout:             IdleTimeout,
		InitialStreamReceiveWindow: streamWindow,
		MaxStreamReceiveWindow:     maxStreamWindow,
		MaxIncomingStreams:         MaxStreams,
		MaxIncomingUniStreams:      -1, // the protocol has none
		InitialPacketSize:          packetSize,
		Tracer:                     quichook.Tracer, // for CongestionTolerant
	}
}
