package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
)

// Stream is one carried connection. Both directions end separately: CloseWrite
// ends ours, Reset breaks both. Close is for an owner that is done: it ends our
// direction and refuses what may still come.
type Stream interface {
	net.Conn
	CloseWrite() error
	// Reset breaks both directions; the other end sees the code.
	Reset(code ResetCode)
	// SetUrgency sets the scheduling priority of what this end sends: 0 first,
	// 7 last.
	SetUrgency(urgency int8)
	// SetBulk says that what this end sends is bulk and has to wait for everything
	// else, or is not any more.
	SetBulk(bulk bool)
}

// Session is a connection between an agent and a gateway, whatever carries it.
type Session interface {
	// Open opens a stream. It never waits for the other end: ErrStreamLimit
	// when that allows no more at the moment. The other end may learn of it with
	// the first write only.
	Open() (Stream, error)
	// Accept waits for a stream that the other end opened.
	Accept(ctx context.Context) (Stream, error)
	// Close ends the session and every stream of it at once.
	Close(code CloseCode, reason string)
	// Done is closed when the session has ended; then Err says why.
	Done() <-chan struct{}
	// Err is nil while the session lives, and a *CloseError if one end closed it.
	Err() error
	// Remote is the other end's address at the moment.
	Remote() netip.AddrPort
}

// maxReason bounds the reason of a close in bytes: it has to fit one packet
// beside everything else, and QUIC does not send it twice.
const maxReason = 256

// NewQUICSession makes a Session of a connection whose handshake is complete.
func NewQUICSession(c *quic.Conn) Session {
	s := &quicSession{c: c}
	s.hook, s.congestion = installCongestion(c, &s.algorithm)
	return s
}

type quicSession struct {
	c          *quic.Conn
	hook       *quichook.Hook // nil: quic-go as it is
	congestion Congestion
	algorithm  algorithm // by which it sends, if there is a hook
}

func (s *quicSession) Open() (Stream, error) {
	st, err := s.c.OpenStream()
	if err != nil {
		var limit quic.StreamLimitReachedError
		var limitPtr *quic.StreamLimitReachedError
		if errors.As(err, &limit) || errors.As(err, &limitPtr) {
			return nil, ErrStreamLimit
		}
		return nil, fmt.Errorf("open stream: %w", closeError(err))
	}
	return newStreamConn(st, s), nil
}

func (s *quicSession) Accept(ctx context.Context) (Stream, error) {
	st, err := s.c.AcceptStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("accept stream: %w", closeError(err))
	}
	return newStreamConn(st, s), nil
}

func (s *quicSession) Close(code CloseCode, reason string) {
	// The error is always nil in quic-go v0.65: closing twice is allowed.
	_ = s.c.CloseWithError(quic.ApplicationErrorCode(code), cutReason(reason))
}

// cutReason shortens a reason to maxReason.
func cutReason(reason string) string {
	if len(reason) > maxReason {
		return strings.ToValidUTF8(reason[:maxReason], "")
	}
	return reason
}

func (s *quicSession) Done() <-chan struct{} { return s.c.Context().Done() }

func (s *quicSession) Err() error {
	if s.c.Context().Err() == nil {
		return nil
	}
	return closeError(context.Cause(s.c.Context()))
}

func (s *quicSession) Remote() netip.AddrPort { return AddrPort(s.c.RemoteAddr()) }

// AddrPort converts the address of a UDP or TCP connection; the zero value for
// anything else. IPv4 in IPv6 is unmapped.
func AddrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// closeError turns an error of a connection into one that says
// what closed it: a *CloseError where one of the ends did so on purpose.
func closeError(err error) error {
	if app, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return &CloseError{Code: CloseCode(app.ErrorCode), Reason: app.ErrorMessage, Remote: app.Remote}
	}
	return err
}

// Stats is what a session's transport has seen so far. What a transport does not
// know is zero.
type Stats struct {
	// Transport is OverQUIC or OverTCP.
	Transport        string
	RTT, MinRTT      time.Duration
	CongestionWindow uint64 // bytes
	Sent, Received   uint64 // bytes on the wire below UDP
	PacketsSent      uint64
	PacketsLost      uint64
}

// Names of what carries a session.
const (
	OverQUIC = "quic"
	OverTCP  = "tcp"
)

// TransportOf says what carries a session: OverQUIC or OverTCP.
func TransportOf(s Session) string {
	if _, ok := s.(*quicSession); ok {
		return OverQUIC
	}
	return OverTCP
}

// StatsOf returns what the session's transport tells of itself.
func StatsOf(s Session) Stats {
	if with, ok := s.(interface{ Stats() Stats }); ok {
		return with.Stats()
	}
	return Stats{}
}

// Stats reads quic-go's counters.
func (s *quicSession) Stats() Stats {
	c := s.c.ConnectionStats()
	return Stats{
		Transport: OverQUIC, RTT: c.SmoothedRTT, MinRTT: c.MinRTT, CongestionWindow: c.CongestionWindow,
		Sent: c.BytesSent, Received: c.BytesReceived, PacketsSent: c.PacketsSent, PacketsLost: c.PacketsLost,
	}
}
