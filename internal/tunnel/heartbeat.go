package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"regexp"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
)

// HeartbeatInterval is how often an agent says how its node is: about as often as
// a kubelet renews its lease by itself (a quarter of 40 s), and every other sign
// of life, so that it costs no packet of its own.
const HeartbeatInterval = 2 * SignOfLife

// Heartbeat says, for as long as the session lives, whether the node's kubelet
// does and whether the node could be without the cloud. The gateway's side
// renews the node's lease by it: the session alone proves that the agent lives,
// and not the kubelet.
type Heartbeat struct {
	// KubeletAgeMS is how long ago, in milliseconds, the kubelet last renewed
	// its lease on the node. nil: it has not since the hub began.
	KubeletAgeMS *int64
	// Autonomy is nil where the node does not say.
	Autonomy *Autonomy
}

// Autonomy is whether the node would go on through a cut and a reboot in it.
type Autonomy struct {
	// Faults are what would keep it from that, the gravest first. None: it would.
	Faults []Fault
}

// Fault is one reason why a node is not autonomous.
type Fault struct {
	// Reason is a word in CamelCase, like CacheIncomplete.
	Reason string
	// Message is a sentence for people.
	Message string
}

// Type implements Message.
func (Heartbeat) Type() MessageType { return TypeHeartbeat }

// What a heartbeat may hold: it becomes part of an object that others read.
const (
	// MaxFaults is twice the reasons that are known.
	MaxFaults = 8
	// maxReason of a fault and maxMessage bound what a condition shows.
	maxFaultReason  = 64
	maxFaultMessage = 512
)

// faultReason is what a condition's reason may be, less the separators
// (apimachinery's metav1.Condition).
var faultReason = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)

// append writes a heartbeat in varints: a gateway with ten thousand nodes reads
// nine hundred a second, and JSON was a tenth of its processor and a fifth of its
// garbage.
//
//	+---------------------+------------------+------------------------------------+
//	| varint, 0: unknown, | varint, 0: node  | of each fault: varint len, reason, |
//	| else 1 + age in ms  | does not say,    | varint len, message                |
//	|                     | else 1 + faults  |                                    |
//	+---------------------+------------------+------------------------------------+
//
// What follows is not read: filling now, room for later versions.
func (h Heartbeat) append(b []byte) []byte {
	var age, faults uint64
	if h.KubeletAgeMS != nil {
		age = 1 + min(uint64(max(0, *h.KubeletAgeMS)), quicvarint.Max-1)
	}
	b = quicvarint.Append(b, age)
	if h.Autonomy == nil {
		return quicvarint.Append(b, faults)
	}
	b = quicvarint.Append(b, 1+uint64(len(h.Autonomy.Faults)))
	for _, f := range h.Autonomy.Faults {
		for _, text := range []string{f.Reason, f.Message} {
			b = quicvarint.Append(b, uint64(len(text)))
			b = append(b, text...)
		}
	}
	return b
}

// parseHeartbeat refuses what no agent of ours says.
func parseHeartbeat(body []byte) (Heartbeat, error) {
	var h Heartbeat
	age, n, err := quicvarint.Parse(body)
	if err != nil {
		return Heartbeat{}, fmt.Errorf("age: %w", err)
	}
	body = body[n:]
	faults, n, err := quicvarint.Parse(body)
	if err != nil {
		return Heartbeat{}, fmt.Errorf("faults: %w", err)
	}
	if age > 0 {
		h = h.WithKubeletAge(time.Duration(min(age-1, math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond)
	}
	if faults == 0 {
		return h, nil
	}
	h.Autonomy = &Autonomy{}
	if faults--; faults > MaxFaults {
		return Heartbeat{}, fmt.Errorf("%d faults are more than the %d allowed", faults, MaxFaults)
	}
	r := bytes.NewReader(body[n:])
	for range faults {
		reason, err := readText(r, byteReader{r}, maxFaultReason)
		if err != nil {
			return Heartbeat{}, fmt.Errorf("reason of a fault: %w", err)
		}
		if !faultReason.MatchString(reason) {
			return Heartbeat{}, errors.New("a fault whose reason is no word in CamelCase")
		}
		message, err := readText(r, byteReader{r}, maxFaultMessage)
		if err != nil {
			return Heartbeat{}, fmt.Errorf("message of fault %s: %w", reason, err)
		}
		h.Autonomy.Faults = append(h.Autonomy.Faults, Fault{Reason: reason, Message: message})
	}
	return h, nil
}

// KubeletAge returns how long ago the kubelet renewed its lease; false if it has
// not.
func (h Heartbeat) KubeletAge() (time.Duration, bool) {
	if h.KubeletAgeMS == nil {
		return 0, false
	}
	// A day is for ever here; the bound keeps the multiplication from
	// overflowing.
	return time.Duration(min(*h.KubeletAgeMS, (24*time.Hour).Milliseconds())) * time.Millisecond, true
}

// WithKubeletAge returns h for a kubelet that renewed its lease age ago.
func (h Heartbeat) WithKubeletAge(age time.Duration) Heartbeat {
	ms := max(0, age.Milliseconds())
	h.KubeletAgeMS = &ms
	return h
}
