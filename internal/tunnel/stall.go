package tunnel

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// stallLook is how often the connections of a session are looked at.
	stallLook = 10 * time.Second
	// stallCounts is how long a write must have been blocked for what the stream
	// holds to count: longer than a slow reader pauses between two reads.
	stallCounts = 5 * time.Second
	// stallDeadline is how long it must have been blocked before the connection
	// may be cut for the sake of others: a reader that has not taken stallPiece in
	// that time.
	stallDeadline = 30 * time.Second
	// stallPiece is how much is written at once, so that a large buffer does not
	// hide that somebody reads it, if slowly.
	stallPiece = 32 << 10
)

// GatewayStallLimit, AgentStallLimit and MeshStallLimit are how many bytes the
// stalled streams of one session may hold at the end with that configuration:
// three quarters of the connection's window, so that what is left carries
// everything else.
const (
	GatewayStallLimit = gatewayConnWindow / 4 * 3
	AgentStallLimit   = agentConnWindow / 4 * 3
	MeshStallLimit    = meshConnWindow / 4 * 3
)

// StallPool bounds what the stalled streams of all sessions of a process hold:
// the windows of ten thousand sessions together are more than any machine has.
type StallPool struct {
	limit int64
	held  atomic.Int64
	cuts  atomic.Uint64
}

// NewStallPool makes a pool of that many bytes.
func NewStallPool(limit int64) *StallPool { return &StallPool{limit: limit} }

// Held is how much stalled streams may hold at the moment, in bytes.
func (p *StallPool) Held() int64 { return p.held.Load() }

// Limit is how much they may hold, in bytes.
func (p *StallPool) Limit() int64 { return p.limit }

// Cuts is how many connections of all sessions were cut because nobody read them.
func (p *StallPool) Cuts() uint64 { return p.cuts.Load() }

// ErrStalled is a connection that was cut because nobody read it while others
// needed what it held.
var ErrStalled = errors.New("nobody has read this connection for long, and it held up others")

// Stalls looks after the connections of one session whose readers do not read.
// Each holds up to a window of the credit that all streams of a session share,
// and when none is left everything stands still. So past a limit the one that
// has stood still the longest is cut, and then the next.
//
// A connection over which nothing is sent is not stalled, however long it is
// quiet, and one that nobody reads is left alone while there is credit for
// others: an exec session may wait for a night behind a pager.
type Stalls struct {
	limit int64
	pool  *StallPool // nil: this session alone
	base  time.Time  // what times are measured from: the clock of the wall may be set

	mu    sync.Mutex // guards all below
	total int64      // what the pool has been told
	list  map[*stallWatch]struct{}
	timer *time.Timer // nil while list is empty
}

// NewStalls makes one for a session; see GatewayStallLimit and its like. A pool bounds all
// sessions that share it; nil: none.
func NewStalls(limit int64, pool *StallPool) *Stalls {
	return &Stalls{limit: limit, pool: pool, base: time.Now()}
}

// stallWatch is a copy from a stream of the session.
type stallWatch struct {
	base    time.Time    // of its Stalls
	writing atomic.Int64 // since when, in nanoseconds from base; 0: no write is under way
	carried atomic.Int64 // bytes
	abort   func()
}

// held is what the stream may hold unread: what it began with, and what its
// window may have grown by while it was read.
func (w *stallWatch) held() int64 { return min(streamWindow+w.carried.Load(), maxStreamWindow) }

// write writes b in pieces and notes how it goes; w may be nil.
func (w *stallWatch) write(dst io.Writer, b []byte) (n int64, err error) {
	if w == nil {
		nw, err := dst.Write(b)
		return int64(nw), err
	}
	defer w.writing.Store(0)
	for piece := range slices.Chunk(b, stallPiece) {
		w.writing.Store(max(int64(time.Since(w.base)), 1))
		nw, err := dst.Write(piece)
		n += int64(nw)
		w.carried.Add(int64(nw))
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// watch adds a copy; the caller removes it.
func (s *Stalls) watch(abort func()) *stallWatch {
	w := &stallWatch{base: s.base, abort: abort}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list == nil {
		s.list = map[*stallWatch]struct{}{}
	}
	s.list[w] = struct{}{}
	if s.timer == nil {
		s.timer = time.AfterFunc(stallLook, s.look)
	}
	return w
}

func (s *Stalls) remove(w *stallWatch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.list, w)
	if len(s.list) == 0 && s.timer != nil {
		s.timer.Stop()
		s.timer = nil
		s.tellLocked(0)
	}
}

// tellLocked tells the pool what the session's streams hold.
func (s *Stalls) tellLocked(total int64) {
	if s.pool != nil {
		s.pool.held.Add(total - s.total)
		s.total = total
	}
}

// tooMuch reports whether streams that hold total are to be cut.
func (s *Stalls) tooMuch(total int64) bool {
	return total > s.limit || s.pool != nil && s.pool.held.Load() > s.pool.limit
}

// look cuts what holds too much.
func (s *Stalls) look() {
	now := time.Since(s.base)
	s.mu.Lock()
	var total int64
	var stalled []*stallWatch
	for w := range s.list {
		since := w.writing.Load()
		blocked := now - time.Duration(since)
		if since == 0 || blocked < stallCounts {
			continue
		}
		total += w.held()
		if blocked >= stallDeadline {
			stalled = append(stalled, w)
		}
	}
	s.tellLocked(total)
	if s.timer != nil {
		s.timer.Reset(stallLook)
	}
	slices.SortFunc(stalled, func(a, b *stallWatch) int { return cmp.Compare(a.writing.Load(), b.writing.Load()) })
	var cut []*stallWatch
	for _, w := range stalled {
		if !s.tooMuch(total) {
			break
		}
		total -= w.held()
		s.tellLocked(total)
		cut = append(cut, w)
	}
	s.mu.Unlock()
	if s.pool != nil {
		s.pool.cuts.Add(uint64(len(cut)))
	}
	for _, w := range cut {
		w.abort() // which removes it, and needs mu for that
	}
}
