package tunnel

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
)

// MaxControlMessage bounds the body of a control message in bytes.
const MaxControlMessage = 64 << 10

// controlWriteTimeout bounds the sending of one control message: the control
// stream has priority over all others, so what cannot be sent in this time
// has no working path below it.
const controlWriteTimeout = 10 * time.Second

// MessageType is the type of a control message. Unknown even types are skipped,
// unknown odd types end the session.
type MessageType uint64

// The control messages.
const (
	TypeHello     MessageType = 1
	TypePing      MessageType = 2
	TypeWelcome   MessageType = 3
	TypePong      MessageType = 4
	TypeMeshHello MessageType = 5
	TypeDrain     MessageType = 6
	TypeOwned     MessageType = 7
	TypeHeartbeat MessageType = 8
	TypeKick      MessageType = 9
	TypeGateways  MessageType = 10
	TypePolicy    MessageType = 12
	TypePad       MessageType = 14
	TypeSpread    MessageType = 16
)

// Pad is skipped by who receives it. An agent sends one, or a Heartbeat that is as
// large, every SignOfLife in place of QUIC's own keepalive, whose packet is too
// small to be answered with a stateless reset (quic-go answers none below 43
// bytes, lest two ends reset each other for ever): so a gateway that was killed
// and started again is noticed within KeepAlive.
type Pad struct{}

// padding makes the packet of a Pad large enough whatever the connection IDs.
const padding = 32

// Type implements Message.
func (Pad) Type() MessageType { return TypePad }

// Version is the version of the session protocol inside its ALPN. WELCOME
// answers with the lower one of both ends.
const Version = 1

// Capabilities is a set of bits for what an end can do beyond Version.
type Capabilities uint64

// The capability bits.
const (
	// CapOptimistic: understands FlagOptimistic.
	CapOptimistic Capabilities = 1 << 0
	// CapMove: the agent makes a session at another gateway before it leaves one
	// that drains, and reads GATEWAYS and POLICY.
	CapMove Capabilities = 1 << 1
	// CapUDP and CapTun: serves dials of KindUDP and of KindTun. Assigned, so that
	// an end which learns to can say so; none does yet.
	CapUDP Capabilities = 1 << 2
	CapTun Capabilities = 1 << 3

	// Supported is what this version can do, at either end.
	Supported = CapOptimistic | CapMove
)

// Has reports whether every bit of c is in s.
func (s Capabilities) Has(c Capabilities) bool { return s&c == c }

// Message is one of Hello, Welcome, Ping, Pong, Drain, Heartbeat, Spread,
// SignedGateways and SignedPolicy; between gateways also of MeshHello, Owned and Kick.
type Message interface{ Type() MessageType }

// Hello is the first message of an agent.
type Hello struct {
	Version int `json:"version"`
	// Node repeats the name in the certificate. A gateway ends the session if
	// they differ, because then one of the two is misconfigured.
	Node          string       `json:"node"`
	BootID        string       `json:"bootID,omitempty"`
	EngineVersion string       `json:"engineVersion,omitempty"`
	Architecture  string       `json:"architecture,omitempty"`
	Capabilities  Capabilities `json:"capabilities,omitempty"`
	// LastEpoch is of the newest session this process has had, at whichever
	// gateway: the new one's is higher, also where gateways' clocks differ.
	LastEpoch uint64 `json:"lastEpoch,omitempty"`
}

// Welcome answers Hello: the session is the node's newest from here on.
type Welcome struct {
	Version int `json:"version"`
	// Gateway is the identifier of the gateway process, new at each start.
	Gateway string `json:"gateway"`
	// Epoch orders the sessions of one node; the highest is the newest.
	Epoch        uint64       `json:"epoch"`
	Capabilities Capabilities `json:"capabilities,omitempty"`
	// SpreadMS is over how many milliseconds the node is to spread its first
	// attempt after it loses this session, and over half of it those that follow: a
	// gateway with many nodes asks for more, so that they do not all return to
	// another one in one moment.
	SpreadMS int64 `json:"spreadMS,omitempty"`
}

// Spread replaces Welcome.SpreadMS: the gateway has more nodes since, or fewer.
type Spread struct{ Milliseconds uint64 }

// Ping asks for a Pong with the same payload. It also makes the path known to
// the other end after an address change.
type Ping struct{ Payload [8]byte }

// Pong answers a Ping.
type Pong struct{ Payload [8]byte }

// Drain announces that the sender stops: it refuses new dials, and closes the
// session when those that exist have ended or Deadline has passed.
type Drain struct {
	// DeadlineMS is in milliseconds from now.
	DeadlineMS int64  `json:"deadlineMS"`
	Reason     string `json:"reason,omitempty"`
	// Alternates are the ids of gateways that take the node over meanwhile. With
	// any, the sender serves the node until it has moved.
	Alternates []string `json:"alternates,omitempty"`
	// SpreadMS is over how many milliseconds nodes are to spread their move.
	SpreadMS int64 `json:"spreadMS,omitempty"`
}

// SignedGateways carries a signed.Gateways document, at the session's begin and
// whenever it changes.
type SignedGateways struct{ Document []byte }

// SignedPolicy carries the node's signed.Policy document in the same way.
type SignedPolicy struct{ Document []byte }

// Type implements Message.
func (Hello) Type() MessageType { return TypeHello }

// Type implements Message.
func (Welcome) Type() MessageType { return TypeWelcome }

// Type implements Message.
func (Ping) Type() MessageType { return TypePing }

// Type implements Message.
func (Pong) Type() MessageType { return TypePong }

// Type implements Message.
func (Drain) Type() MessageType { return TypeDrain }

// Type implements Message.
func (SignedGateways) Type() MessageType { return TypeGateways }

// Type implements Message.
func (Spread) Type() MessageType { return TypeSpread }

// Type implements Message.
func (SignedPolicy) Type() MessageType { return TypePolicy }

// AppendMessage appends the bytes of m to b.
func AppendMessage(b []byte, m Message) ([]byte, error) {
	var body []byte
	switch m := m.(type) {
	case Ping:
		body = m.Payload[:]
	case Pong:
		body = m.Payload[:]
	case Pad:
		body = make([]byte, padding)
	case SignedGateways:
		body = m.Document
	case SignedPolicy:
		body = m.Document
	case Owned:
		body = m.append(nil)
	case Spread:
		body = quicvarint.Append(nil, m.Milliseconds)
	case Heartbeat:
		body = m.append(make([]byte, 0, padding))
		body = body[:max(padding, len(body))] // it stands for a Pad
	default:
		var err error
		if body, err = json.Marshal(m); err != nil {
			return b, fmt.Errorf("control message %d: %w", m.Type(), err)
		}
	}
	if len(body) > MaxControlMessage {
		return b, fmt.Errorf("control message %d: %d bytes are more than the %d allowed", m.Type(), len(body), MaxControlMessage)
	}
	b = quicvarint.Append(b, uint64(m.Type()))
	b = quicvarint.Append(b, uint64(len(body)))
	return append(b, body...), nil
}

// ErrCriticalMessage is an unknown control message that may not be skipped.
var ErrCriticalMessage = errors.New("unknown control message that may not be skipped")

// ReadMessage reads the next control message it knows. Unknown even types are
// skipped; an unknown odd one is ErrCriticalMessage.
func ReadMessage(r *bufio.Reader) (Message, error) {
	for {
		t, err := quicvarint.Read(r)
		if err != nil {
			return nil, fmt.Errorf("control message: %w", err)
		}
		n, err := quicvarint.Read(r)
		if err != nil {
			return nil, fmt.Errorf("control message %d: length: %w", t, err)
		}
		if n > MaxControlMessage {
			return nil, fmt.Errorf("control message %d: %d bytes are more than the %d allowed", t, n, MaxControlMessage)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, fmt.Errorf("control message %d: body: %w", t, err)
		}
		m, err := parseMessage(MessageType(t), body)
		if err != nil {
			return nil, err
		}
		if m != nil {
			return m, nil
		}
	}
}

// parseMessage returns nil, nil for a message to skip.
func parseMessage(t MessageType, body []byte) (Message, error) {
	var err error
	switch t {
	case TypeHello:
		var m Hello
		if err = json.Unmarshal(body, &m); err == nil {
			return m, nil
		}
	case TypeWelcome:
		var m Welcome
		if err = json.Unmarshal(body, &m); err == nil {
			return m, nil
		}
	case TypeDrain:
		var m Drain
		if err = json.Unmarshal(body, &m); err == nil {
			return m, nil
		}
	case TypeSpread:
		ms, n, err := quicvarint.Parse(body)
		if err != nil || n != len(body) {
			return nil, fmt.Errorf("control message %d: %d bytes are no varint", t, len(body))
		}
		return Spread{Milliseconds: ms}, nil
	case TypeHeartbeat:
		var m Heartbeat
		if m, err = parseHeartbeat(body); err == nil {
			return m, nil
		}
	case TypePad:
		return nil, nil
	case TypeGateways:
		return SignedGateways{Document: body}, nil
	case TypePolicy:
		return SignedPolicy{Document: body}, nil
	case TypeMeshHello:
		var m MeshHello
		if err = json.Unmarshal(body, &m); err == nil {
			return m, nil
		}
	case TypeKick:
		var m Kick
		if err = json.Unmarshal(body, &m); err == nil {
			return m, nil
		}
	case TypeOwned:
		var m Owned
		if m, err = parseOwned(body); err == nil {
			return m, nil
		}
	case TypePing, TypePong:
		if len(body) != 8 {
			return nil, fmt.Errorf("control message %d: %d bytes, want 8", t, len(body))
		}
		if t == TypePing {
			return Ping{Payload: [8]byte(body)}, nil
		}
		return Pong{Payload: [8]byte(body)}, nil
	default:
		if t%2 == 1 {
			return nil, fmt.Errorf("control message %d: %w", t, ErrCriticalMessage)
		}
		return nil, nil
	}
	return nil, fmt.Errorf("control message %d: %w", t, err)
}

// Control sends and receives control messages on the control stream. Send may
// be called by any goroutine, Receive by one at a time.
type Control struct {
	stream Stream
	r      *bufio.Reader
	mu     sync.Mutex // serialises writes
}

// controlBuffer is what a control stream reads at once: it lives as long as the
// session, of which a gateway has ten thousand, and messages after WELCOME are
// a dozen bytes.
const controlBuffer = 128

// NewControl makes s the control stream: nothing is scheduled before it.
func NewControl(s Stream) *Control {
	s.SetUrgency(0)
	return &Control{stream: s, r: bufio.NewReaderSize(s, controlBuffer)}
}

// Send sends m. After an error the control stream is of no more use.
func (c *Control) Send(m Message) error {
	b, err := AppendMessage(nil, m)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stream.SetWriteDeadline(time.Now().Add(controlWriteTimeout)); err != nil {
		return fmt.Errorf("send control message %d: %w", m.Type(), err)
	}
	if _, err := c.stream.Write(b); err != nil {
		return fmt.Errorf("send control message %d: %w", m.Type(), err)
	}
	return nil
}

// Receive returns the next message; see ReadMessage.
func (c *Control) Receive() (Message, error) { return ReadMessage(c.r) }

// SetReadDeadline bounds Receive. Zero: no bound.
func (c *Control) SetReadDeadline(t time.Time) error { return c.stream.SetReadDeadline(t) }
