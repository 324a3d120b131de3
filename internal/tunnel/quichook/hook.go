package quichook

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
)

// Algorithm is quic-go's internal/congestion.SendAlgorithmWithDebugInfos with
// the names of its integer types written out: times are nanoseconds of its
// monotonic clock (0: at once), sizes bytes. All calls come from the goroutine
// that runs the connection.
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

// Install gives c what algorithm returns: one at once, and another after each
// migration to a new path. It returns at once; see Installed.
//
// An error means that c keeps quic-go's own controller.
func Install(c *quic.Conn, algorithm func(Counters) Algorithm) (*Hook, error) {
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
	algorithm func(Counters) Algorithm
	done      chan struct{}
	handler   unsafe.Pointer // the connection's sent packet handler; nil: not installed yet
	current   unsafe.Pointer // our algorithm, the data word of its interface
	attached  bool           // the connection has its recorder again
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
	// All three are recorded only by the goroutine that runs the connection.
	switch e.(type) {
	case qlog.PacketSent, qlog.PacketReceived:
		// The last event of a packet: nothing that was begun with the recorder
		// is still to be recorded.
		switch {
		case j.handler == nil:
			j.begin()
		case j.attached && t == nil:
			j.attach(nil)
		}
	case qlog.MetricsUpdated:
		if j.handler == nil {
			return
		}
		if dataWord(at[any](j.handler, j.layout.congestion)) != j.current {
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

// begin installs the first algorithm.
func (j *job) begin() {
	j.handler = dataWord(at[any](unsafe.Pointer(j.conn), j.layout.connHandler))
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
	})
	*at[Algorithm](j.handler, l.congestion) = a
	j.current = dataWord(at[any](j.handler, l.congestion))
}

func at[T any](p unsafe.Pointer, offset uintptr) *T { return (*T)(unsafe.Add(p, offset)) }

// dataWord is the pointer in an interface that holds one.
func dataWord(i *any) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Add(unsafe.Pointer(i), unsafe.Sizeof(uintptr(0))))
}
