package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/quic-go/quic-go/quicvarint"
)

// MeshHello is the first message of a gateway that connects to another. There
// is no answer: the other one connects back for what it has to say.
type MeshHello struct {
	Version int `json:"version"`
	// Process is the identifier of the gateway process, new at each start.
	Process string `json:"process"`
	// Draining: the sender takes no sessions.
	Draining bool `json:"draining,omitempty"`
}

// Type implements Message.
func (MeshHello) Type() MessageType { return TypeMeshHello }

// Kick tells another gateway that a node was revoked.
type Kick struct {
	Node   string `json:"node"`
	Reason string `json:"reason,omitempty"`
}

// Type implements Message.
func (Kick) Type() MessageType { return TypeKick }

// Owned says which nodes the sender holds sessions of. It speaks for the sender
// alone; what others hold they say themselves.
type Owned struct {
	// Snapshot: forget what the sender said before.
	Snapshot bool
	Sessions []OwnedSession
}

// OwnedSession is one entry of Owned.
type OwnedSession struct {
	Node string
	// Epoch of the session; 0: the sender holds none any more.
	Epoch uint64
}

// Type implements Message.
func (Owned) Type() MessageType { return TypeOwned }

// maxNodeName is the length of a node's name: a DNS subdomain.
const maxNodeName = 253

// MaxOwned is how many entries surely fit one message.
const MaxOwned = (MaxControlMessage - 16) / (maxNodeName + 2 + 8)

// append writes a flag byte, a count, and name length, name and epoch of each.
func (m Owned) append(b []byte) []byte {
	var flags byte
	if m.Snapshot {
		flags = 1
	}
	b = append(b, flags)
	b = quicvarint.Append(b, uint64(len(m.Sessions)))
	for _, s := range m.Sessions {
		b = quicvarint.Append(b, uint64(len(s.Node)))
		b = append(b, s.Node...)
		b = quicvarint.Append(b, s.Epoch)
	}
	return b
}

func parseOwned(body []byte) (Owned, error) {
	r := bytes.NewReader(body)
	flags, err := r.ReadByte()
	if err != nil {
		return Owned{}, err
	}
	if flags > 1 {
		return Owned{}, fmt.Errorf("flags %#x", flags)
	}
	m := Owned{Snapshot: flags == 1}
	n, err := quicvarint.Read(r)
	if err != nil {
		return Owned{}, fmt.Errorf("count: %w", err)
	}
	// An entry takes three bytes at least, so that no count can ask for more
	// memory than the message itself.
	if n > uint64(r.Len())/3 {
		return Owned{}, fmt.Errorf("%d entries in %d bytes", n, r.Len())
	}
	if n > 0 {
		m.Sessions = make([]OwnedSession, 0, n)
	}
	for range n {
		name, err := readText(r, byteReader{r}, maxNodeName)
		if err != nil {
			return Owned{}, fmt.Errorf("node: %w", err)
		}
		if name == "" {
			return Owned{}, errors.New("no node name")
		}
		epoch, err := quicvarint.Read(r)
		if err != nil {
			return Owned{}, fmt.Errorf("epoch of %s: %w", name, err)
		}
		m.Sessions = append(m.Sessions, OwnedSession{Node: name, Epoch: epoch})
	}
	if r.Len() > 0 {
		return Owned{}, fmt.Errorf("%d bytes after the last entry", r.Len())
	}
	return m, nil
}

// Forward precedes a dial header on a stream between gateways: the dial is for a
// node of the receiver's.
//
//	+----+---------+------------+------+-------------------------+
//	| u8 | u8 hops | varint len | node | dial header, then as on |
//	| =1 | left    |            |      | a session of the node   |
//	+----+---------+------------+------+-------------------------+
type Forward struct {
	// Hops is how often the receiver may pass it on, if the node has just moved.
	Hops uint8
	Node string
}

// maxHops bounds Forward.Hops: a node that moves while a dial is on its way is
// one gateway further.
const maxHops = 2

// Append appends the bytes of f to b.
func (f Forward) Append(b []byte) ([]byte, error) {
	if f.Node == "" || len(f.Node) > maxNodeName || !utf8.ValidString(f.Node) || f.Hops > maxHops {
		return b, fmt.Errorf("forward to node %q with %d hops: out of range", f.Node, f.Hops)
	}
	b = append(b, HeaderVersion, f.Hops)
	b = quicvarint.Append(b, uint64(len(f.Node)))
	return append(b, f.Node...), nil
}

// ReadForward reads what Append wrote and not one byte more.
func ReadForward(r io.Reader) (Forward, error) {
	var fixed [2]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return Forward{}, fmt.Errorf("forward: %w", err)
	}
	if fixed[0] != HeaderVersion || fixed[1] > maxHops {
		return Forward{}, fmt.Errorf("forward: version %d, %d hops: %w", fixed[0], fixed[1], ErrUnsupported)
	}
	node, err := readText(r, byteReader{r}, maxNodeName)
	if err != nil {
		return Forward{}, fmt.Errorf("forward: node: %w", err)
	}
	if node == "" {
		return Forward{}, errors.New("forward: no node")
	}
	return Forward{Hops: fixed[1], Node: node}, nil
}

// retryPrefix begins the reason of a close that says when to try again.
const retryPrefix = "retry within "

// maxRetry bounds what a close can ask for: nobody may keep a node away longer.
const maxRetry = 10 * time.Minute

// RetryReason is a reason of CloseRateLimited or CloseGoingAway that asks the
// other end to spread its next attempt over d.
func RetryReason(d time.Duration, text string) string {
	return retryPrefix + d.Round(time.Millisecond).String() + ": " + text
}

// ParseRetry returns what RetryReason said, at most ten minutes; ok is false for
// any other reason.
func ParseRetry(reason string) (d time.Duration, ok bool) {
	rest, ok := strings.CutPrefix(reason, retryPrefix)
	if !ok {
		return 0, false
	}
	text, _, ok := strings.Cut(rest, ": ")
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, false
	}
	return min(d, maxRetry), true
}
