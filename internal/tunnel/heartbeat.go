package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"
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
	KubeletAgeMS *int64 `json:"kubeletAgeMS,omitempty"`
	// Autonomy is nil where the node does not say.
	Autonomy *Autonomy `json:"autonomy,omitempty"`
}

// Autonomy is whether the node would go on through a cut and a reboot in it.
type Autonomy struct {
	// Faults are what would keep it from that, the gravest first. None: it would.
	Faults []Fault `json:"faults,omitempty"`
}

// Fault is one reason why a node is not autonomous.
type Fault struct {
	// Reason is a word in CamelCase, like CacheIncomplete.
	Reason string `json:"reason"`
	// Message is a sentence for people.
	Message string `json:"message,omitempty"`
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

// parseHeartbeat refuses what no agent of ours says.
func parseHeartbeat(body []byte) (Heartbeat, error) {
	var h Heartbeat
	if err := json.Unmarshal(body, &h); err != nil {
		return Heartbeat{}, err
	}
	if h.KubeletAgeMS != nil && *h.KubeletAgeMS < 0 {
		return Heartbeat{}, errors.New("an age below zero")
	}
	if h.Autonomy == nil {
		return h, nil
	}
	if len(h.Autonomy.Faults) > MaxFaults {
		return Heartbeat{}, fmt.Errorf("%d faults are more than the %d allowed", len(h.Autonomy.Faults), MaxFaults)
	}
	for _, f := range h.Autonomy.Faults {
		if len(f.Reason) > maxFaultReason || !faultReason.MatchString(f.Reason) {
			return Heartbeat{}, errors.New("a fault whose reason is no word in CamelCase")
		}
		if len(f.Message) > maxFaultMessage || !utf8.ValidString(f.Message) {
			return Heartbeat{}, fmt.Errorf("fault %s: its message is no UTF-8 of at most %d bytes", f.Reason, maxFaultMessage)
		}
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
