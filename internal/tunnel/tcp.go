package tunnel

import "time"

const (
	// tcpUserTimeout ends a connection whose data nobody acknowledges, as
	// IdleTimeout ends one that is silent.
	tcpUserTimeout = IdleTimeout
	// tcpUnsent is how much the kernel may hold that it has not sent yet. More
	// than a few round trips' worth only stands in front of what is urgent; the
	// multiplexer's own queue is bounded alike (sendGate).
	tcpUnsent = 128 << 10
	// tcpCongestion is asked for where the kernel has it: on a path that loses
	// 1 % of the packets it carries twenty times what cubic does.
	tcpCongestion = "bbr"
	// TCPDialTimeout bounds a dial up to the end of the TLS handshake, and
	// TLSTimeout a handshake as the gateway sees it: as long as QUIC's.
	TCPDialTimeout = 5 * time.Second
	TLSTimeout     = 5 * time.Second
)
