package quichook

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
)

// Algorithm is quic-go's internal/congestion.SendAlgorithmWithDebugInfos with
// the names of its integer types written out: times are nanoseconds of its
// monotonic clock (0: at once), sizes bytes. All calls come from the goroutine
// that runs the connection.
//
// OnRetransmissionTimeout comes from the hook, with each probe timeout (RFC 9002
// section 6.2) and before the probes are sent: quic-go v0.65 does not call it.
type Algorithm interface {
	CanSend(bytesInFlight int64) bool
	GetCongestionWindow() int64
	HasPacingBudget(now int64) bool
	InRecovery() bool
	InSlowStart() bool
	MaybeExitSlowStart()
	OnCongestionEvent(number, lostBytes, priorInFlight int64)
	OnPacketAcked(number, ackedBytes, priorInFlight, eventTime int64)
	OnPacketSent(sentTime, bytesInFlight, number, bytes int64, isRetransmittable bool)
	OnRetransmissionTimeout(packetsRetransmitted bool)
	OnSpuriousLoss(number int64)
	SetMaxDatagramSize(int64)
	TimeUntilSend(bytesInFlight int64) int64
}

// Counters are those that quic-go shows in ConnectionStats. Its own controllers
// keep them, so ours has to.
type Counters struct {
	Window, LostPackets, LostBytes *atomic.Uint64
}

// ErrNoHook means that the connection's configuration had no Tracer of this
// package.
var ErrNoHook = errors.New("connection was made without the hook's tracer")

// ErrRecorded means that somebody records the connection already.
var ErrRecorded = errors.New("the connection is being recorded already")

// Tracer is for quic.Config.Tracer of connections that Install is to work on.
func Tracer(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return &recorder{} }

// Hook is what there is of this package in a connection.
type Hook struct {
	r *recorder
	j *job
}

// Connection is what an Algorithm may ask of its connection, from within one of its
// own methods only.
type Connection interface {
	// Restart makes the packets no larger than size, in bytes of UDP payload, and
	// looks from there for larger ones that arrive, as quic-go does on a new path. By
	// itself it never makes them smaller on the one that it has (its issue 3955).
	Restart(size int64)
	// Acknowledge makes the connection acknowledge what it has received with what it
	// sends next, if it would wait for more (RFC 9000 section 13.2.1, MaxAckDelay: 25 ms)
	// and did not do this within every. For a connection that carries little the wait
	// is for nothing, and waking for its end costs as much as the packet did.
	Acknowledge(every time.Duration)
}

// Install gives c what algorithm returns: one at once, and another after each
// migration to a new path. It returns at once; see Installed.
//
// An error means that c keeps quic-go's own controller.
func Install(c *quic.Conn, algorithm func(Counters, Connection) Algorithm) (*Hook, error) {
	l, err := layoutOf(c)
	if err != nil {
		return nil, err
	}
	// Set when the connection was made and not changed since.
	r, ok := (*at[qlogwriter.Recorder](unsafe.Pointer(c), l.connRecorder)).(*recorder)
	if !ok {
		return nil, ErrNoHook
	}
	j := &job{conn: c, layout: l, algorithm: algorithm, done: make(chan struct{})}
	r.job.Store(j)
	return &Hook{r, j}, nil
}

// Installed is closed when the controller is in its place, which is with the next
// packet that is sent or received. Until then nobody may call SetPriority on a
// stream of the connection, or AddPath; from then on SetPriority through here.
func (h *Hook) Installed() <-chan struct{} { return h.j.done }

// SetPriority is stream.SetPriority, beside which the connection's recorder may
// not change.
func (h *Hook) SetPriority(stream *quic.Stream, urgency int8, incremental bool) {
	h.j.outside.RLock()
	defer h.j.outside.RUnlock()
	stream.SetPriority(urgency, incremental)
}

// Record gives the connection's events to to, from the next one on that the
// sending of packets causes (an acknowledgement that arrives, above all) until
// stop is called; then to is not called any more. Nobody may close to before.
// It is ErrRecorded while it is being done.
func (h *Hook) Record(to qlogwriter.Recorder) (stop func(), err error) {
	t := &target{to: to}
	if !h.r.target.CompareAndSwap(nil, t) {
		return nil, ErrRecorded
	}
	return func() {
		h.r.target.CompareAndSwap(t, nil)
		t.mu.Lock() // until a call that is under way has returned
		defer t.mu.Unlock()
		t.stopped = true
	}, nil
}

// target is where events go at the moment.
type target struct {
	to qlogwriter.Recorder

	mu      sync.RWMutex // held for reading during a call of to; guards stopped
	stopped bool
}

func (t *target) record(e qlogwriter.Event) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !t.stopped {
		t.to.RecordEvent(e)
	}
}

// job is what a recorder does on the connection's goroutine.
type job struct {
	conn      *quic.Conn
	layout    *layout
	algorithm func(Counters, Connection) Algorithm
	done      chan struct{}
	handler   unsafe.Pointer // the connection's sent packet handler; nil: not installed yet
	current   unsafe.Pointer // our algorithm, the data word of its interface
	attached  bool           // the connection has its recorder again
	largest   int64          // bytes of a packet that both ends could take
	hurried   int64          // the alarm, of quic-go's clock, that Acknowledge has brought forward last
	// outside is held for reading by who makes quic-go look at the connection's
	// recorder on another goroutine, and for writing while it changes.
	outside sync.RWMutex
}

// recorder is called by quic-go with every event. It hands them on while somebody
// records.
type recorder struct {
	job    atomic.Pointer[job]
	target atomic.Pointer[target] // nil: nobody does
}

// AddProducer implements qlogwriter.Trace. quic-go asks once a connection.
func (r *recorder) AddProducer() qlogwriter.Recorder { return r }

// SupportsSchemas implements qlogwriter.Trace.
func (r *recorder) SupportsSchemas(string) bool { return false }

// Close implements io.Closer.
func (r *recorder) Close() error { return nil }

// RecordEvent implements qlogwriter.Recorder.
func (r *recorder) RecordEvent(e qlogwriter.Event) {
	if r == nil {
		return // see the package comment
	}
	t := r.target.Load()
	if t != nil {
		t.record(e)
	}
	j := r.job.Load()
	if j == nil {
		return
	}
	// All four are recorded only by the goroutine that runs the connection.
	switch e := e.(type) {
	case qlog.PacketSent, qlog.PacketReceived:
		// The last event of a packet: nothing that was begun with the recorder
		// is still to be recorded.
		switch {
		case j.handler == nil:
			j.begin()
		case j.attached && t == nil:
			j.attach(nil)
		}
	case qlog.PTOCountUpdated:
		// Before the probes are packed, whose size the algorithm may change.
		if e.PTOCount > 0 && j.inPlace() {
			(*at[Algorithm](j.handler, j.layout.congestion)).OnRetransmissionTimeout(true)
		}
	case qlog.MetricsUpdated:
		if j.handler == nil {
			return
		}
		if !j.inPlace() {
			j.install() // a migration has replaced ours
		}
		if !j.attached && t != nil {
			// In the middle of a packet, which has been begun without.
			j.attach(r)
		}
	}
}

// attach gives the connection its recorder back, or takes it away (nil), if nobody
// is looking at it: the next event is as good.
func (j *job) attach(to qlogwriter.Recorder) {
	if !j.outside.TryLock() {
		return
	}
	defer j.outside.Unlock()
	*at[qlogwriter.Recorder](unsafe.Pointer(j.conn), j.layout.connRecorder) = to
	j.attached = to != nil
}

// inPlace reports whether the connection has the algorithm that it was given last.
func (j *job) inPlace() bool {
	return j.handler != nil && dataWord(at[any](j.handler, j.layout.congestion)) == j.current
}

// begin installs the first algorithm.
func (j *job) begin() {
	j.handler = dataWord(at[any](unsafe.Pointer(j.conn), j.layout.connHandler))
	if f := j.finder(); f != nil {
		for _, n := range j.layout.finder.lostSizes(f) {
			j.largest = max(j.largest, n) // what discovery began with counts as lost
		}
	}
	j.install()
	// Building an event for each packet costs as much as sending it; the few of
	// the handler, which has the recorder too, are enough to notice a migration.
	*at[qlogwriter.Recorder](unsafe.Pointer(j.conn), j.layout.connRecorder) = nil
	close(j.done)
}

func (j *job) install() {
	l := j.layout
	stats := *at[unsafe.Pointer](j.handler, l.stats)
	a := j.algorithm(Counters{
		Window:      at[atomic.Uint64](stats, l.window),
		LostPackets: at[atomic.Uint64](stats, l.lostPackets),
		LostBytes:   at[atomic.Uint64](stats, l.lostBytes),
	}, j)
	*at[Algorithm](j.handler, l.congestion) = a
	j.current = dataWord(at[any](j.handler, l.congestion))
	if f := j.finder(); f != nil {
		a.SetMaxDatagramSize(*at[int64](f, l.finder.min)) // quic-go says so when it changes
	}
}

// finder is what finds the path's MTU; nil: not made yet.
func (j *job) finder() unsafe.Pointer {
	return *at[unsafe.Pointer](unsafe.Pointer(j.conn), j.layout.connFinder)
}

// invalidSize is quic-go's protocol.InvalidByteCount. A test fails if it is not.
const invalidSize = -1

// Restart implements Connection. It is quic-go's mtuFinder.Reset, and what goes with
// it on a new path. A probe that is on its way counts for nothing any more. When the
// last was sent stays, so that a connection that looks for no larger packets does not
// begin to.
func (j *job) Restart(size int64) {
	f := j.finder()
	if f == nil {
		return
	}
	l := &j.layout.finder
	least := at[int64](f, l.min)
	size = min(size, *least)
	// In step with min: quic-go tells of a larger size when this one grows.
	at[atomic.Uint32](unsafe.Pointer(j.conn), j.layout.connPayload).Add(uint32(size - *least))
	*least = size
	lost := l.lostSizes(f)
	for i := range lost {
		lost[i] = invalidSize
	}
	lost[0] = j.largest
	*at[int64](f, l.inFlight) = invalidSize
	*at[bool](f, l.lastLost) = false
	*at[uint8](f, l.generation)++
}

// maxAckDelay is quic-go's protocol.MaxAckDelay. A test fails if it is not.
const maxAckDelay = 25 * time.Millisecond

// Acknowledge implements Connection. The alarm is when an acknowledgement is due, as
// long after what was received last as quic-go waits; 0: none is. It may lie in the
// past, which is when that was received.
func (j *job) Acknowledge(every time.Duration) {
	alarm := at[int64](unsafe.Pointer(j.conn), j.layout.connAlarm)
	if *alarm == 0 || j.hurried != 0 && time.Duration(*alarm-j.hurried) < every {
		return
	}
	j.hurried = *alarm
	*alarm -= int64(maxAckDelay)
}

func at[T any](p unsafe.Pointer, offset uintptr) *T { return (*T)(unsafe.Add(p, offset)) }

// dataWord is the pointer in an interface that holds one.
func dataWord(i *any) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(i), unsafe.Sizeof(uintptr(0))))
}
