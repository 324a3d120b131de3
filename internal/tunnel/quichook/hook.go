package quichook

import (
	"context"
	"errors"
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

// Tracer is for quic.Config.Tracer of connections that Install is to work on.
func Tracer(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return &recorder{} }

// Install gives c what algorithm returns: one at once, and another after each
// migration to a new path. It returns at once; installed is closed when it is
// done, which is with the next packet that is sent or received. Until then
// nobody may call SetPriority on a stream of c, or AddPath.
//
// An error means that c keeps quic-go's own controller.
func Install(c *quic.Conn, algorithm func(Counters) Algorithm) (installed <-chan struct{}, err error) {
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
	return j.done, nil
}

// job is what a recorder does on the connection's goroutine.
type job struct {
	conn      *quic.Conn
	layout    *layout
	algorithm func(Counters) Algorithm
	done      chan struct{}
	handler   unsafe.Pointer // the connection's sent packet handler; nil: not installed yet
	current   unsafe.Pointer // our algorithm, the data word of its interface
}

// recorder is called by quic-go with every event. It records none.
type recorder struct{ job atomic.Pointer[job] }

// AddProducer implements qlogwriter.Trace. quic-go asks once a connection.
func (r *recorder) AddProducer() qlogwriter.Recorder { return r }

// SupportsSchemas implements qlogwriter.Trace.
func (r *recorder) SupportsSchemas(string) bool { return false }

// Close implements io.Closer.
func (r *recorder) Close() error { return nil }

// RecordEvent implements qlogwriter.Recorder.
func (r *recorder) RecordEvent(e qlogwriter.Event) {
	j := r.job.Load()
	if j == nil {
		return
	}
	// All three are recorded only by the goroutine that runs the connection.
	switch e.(type) {
	case qlog.PacketSent, qlog.PacketReceived:
		// The last event of a packet: nothing that was begun with the recorder
		// is still to be recorded.
		if j.handler == nil {
			j.begin()
		}
	case qlog.MetricsUpdated:
		if j.handler != nil && dataWord(at[any](j.handler, j.layout.congestion)) != j.current {
			j.install() // a migration has replaced ours
		}
	}
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
