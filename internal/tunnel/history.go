package tunnel

import (
	"fmt"
	"sync"
	"time"
)

const (
	// historyLength is how many events a History keeps.
	historyLength = 1000
	// historyJoins is how long an event that repeats one of the last few is counted
	// with it.
	historyJoins = time.Second
	// historySample is how often the state of a path is kept though nothing has
	// happened to it: of a quiet day a thousand reach back to its evening before.
	historySample = time.Minute
)

// Event is what has happened to an agent's end of the tunnel.
type Event string

// Events of sessions, which the agent tells, and of their paths, which sessions over
// QUIC with the default congestion control tell themselves (see Keep).
const (
	EventConnected Event = "connected" // a session has begun
	EventEnded     Event = "ended"     // it has ended, and why
	EventFailed    Event = "failed"    // no session could be made
	EventNetwork   Event = "network"   // the node's network has changed
	EventSocket    Event = "socket"    // a session went over to another socket
	EventDrain     Event = "drain"     // the gateway stops
	EventTransport Event = "transport" // another transport is wanted

	EventPath      Event = "path"       // how it is, now and then
	EventLost      Event = "lost"       // a packet that was overtaken by others
	EventLate      Event = "late"       // one arrived that had been taken for lost
	EventTimeout   Event = "timeout"    // nothing was acknowledged in time
	EventSilence   Event = "silence"    // nothing was for long, and now is
	EventBlackHole Event = "black-hole" // large packets do not arrive any more
	EventSize      Event = "size"       // packets have another size
	EventMoved     Event = "moved"      // packets take another path
)

// Happened is an event, or several of a kind that came together.
type Happened struct {
	At    time.Time `json:"at"`            // of the first
	Last  time.Time `json:"last,omitzero"` // of the last, if there are several
	Count int       `json:"count"`         // at least 1
	Event Event     `json:"event"`
	// Session counts from 1; 0: none.
	Session uint64 `json:"session,omitempty"`
	Detail  string `json:"detail,omitempty"`
	// Path is how the session's path was at the last; nil for other sessions' than
	// those over QUIC, and for what happened to none.
	Path *PathState `json:"path,omitempty"`
}

// PathState is how a path is at a moment.
type PathState struct {
	RTT    time.Duration `json:"rttNanoseconds"` // smoothed
	Window int64         `json:"window"`         // bytes that may be on the way
	Sent   uint64        `json:"packetsSent"`    // by the session so far
	Lost   uint64        `json:"packetsLost"`    // of those
}

// History keeps the last thousand events of an agent, always, so that it can be seen
// afterwards what a session died of. It has no packets: a busy session sends a
// thousand in a quarter of a second; see Qlog for those. A gateway keeps none, for it
// would be more than all else that it keeps of a node. The zero History is not
// usable. Its methods may be called by any goroutine.
type History struct {
	now func() time.Time

	mu   sync.Mutex // guards all below
	ring []Happened
	next int // where in a full ring the oldest is
}

// NewHistory makes an empty one.
func NewHistory(now func() time.Time) *History { return &History{now: now} }

// Add tells of an event; session 0: of none. One that repeats the newest is counted
// with it, so that a day of attempts is one line.
func (h *History) Add(session uint64, e Event, detail string) {
	h.add(Happened{Session: session, Event: e, Detail: cutReason(detail)})
}

func (h *History) add(e Happened) {
	e.At, e.Count = h.now().Round(0), 1
	h.mu.Lock()
	defer h.mu.Unlock()
	if same := h.repeated(&e); same != nil {
		same.Count++
		same.Last, same.Path = e.At, e.Path
		return
	}
	if len(h.ring) < historyLength {
		h.ring = append(h.ring, e)
		return
	}
	h.ring[h.next] = e
	h.next = (h.next + 1) % historyLength
}

// repeated finds the entry that e is to be counted with: of the last few, so that
// losses and timeouts that alternate are two lines. Samples are each their own.
func (h *History) repeated(e *Happened) *Happened {
	if e.Event == EventPath {
		return nil
	}
	for i := range min(len(h.ring), 4) {
		o := &h.ring[(h.next+len(h.ring)-1-i)%len(h.ring)]
		last := o.At
		if o.Count > 1 {
			last = o.Last
		}
		if i > 0 && e.At.Sub(last) > historyJoins {
			return nil
		}
		if o.Event == e.Event && o.Session == e.Session && o.Detail == e.Detail {
			return o
		}
	}
	return nil
}

// Events returns what is kept, the oldest first.
func (h *History) Events() []Happened {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(append(make([]Happened, 0, len(h.ring)), h.ring[h.next:]...), h.ring[:h.next]...)
}

// Keep has a session tell h of its path from now on, as the session of that number.
// Without effect on one that is not over QUIC or whose congestion control is not ours.
func Keep(s Session, h *History, number uint64) {
	if q, ok := s.(*quicSession); ok {
		q.algorithm.keeper.Store(&keeper{h: h, session: number, stats: q.Stats})
	}
}

// keeper tells a history of one session. Its methods are for the goroutine that runs
// the connection, and do nothing for nil.
type keeper struct {
	h       *History
	session uint64
	stats   func() Stats
	sampled time.Duration // by the connection's clock, when the last sample was
}

func (k *keeper) tell(e Event, format string, args ...any) {
	if k == nil {
		return
	}
	s := k.stats()
	k.h.add(Happened{
		Session: k.session, Event: e, Detail: fmt.Sprintf(format, args...),
		Path: &PathState{RTT: s.RTT, Window: int64(s.CongestionWindow), Sent: s.PacketsSent, Lost: s.PacketsLost},
	})
}

// sample keeps how the path is if it is time to.
func (k *keeper) sample(now time.Duration) {
	if k != nil && (k.sampled == 0 || now-k.sampled >= historySample) {
		k.sampled = now
		k.tell(EventPath, "")
	}
}
