package tunnel

import (
	"errors"
	"sync/atomic"

	"github.com/libp2p/go-yamux/v5"
)

// Budget bounds by how much the receive windows of all sessions of a process
// may grow together. Every session has the windows it begins with, whatever the
// budget: they are bounded by the number of sessions. Growth is what a fast
// reader gets on top, and when the budget is used up nobody gets more of it, so
// that readers which stop later cannot make the process hold without bound what
// is sent to them.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget makes a budget of that many bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Used is how much of it is taken, in bytes.
func (b *Budget) Used() int64 { return b.used.Load() }

// Limit is how large it is, in bytes.
func (b *Budget) Limit() int64 { return b.limit }

// reserve takes n bytes if they are there.
func (b *Budget) reserve(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

var errBudget = errors.New("the memory for receive windows is used up")

// spans is the budget as the multiplexer asks it: a span per stream.
func (b *Budget) spans() func() (yamux.MemoryManager, error) {
	if b == nil {
		return nil
	}
	return func() (yamux.MemoryManager, error) { return &budgetSpan{b: b}, nil }
}

// budgetSpan is what one stream has taken.
type budgetSpan struct {
	b    *Budget
	used atomic.Int64
}

// ReserveMemory implements yamux.MemoryManager. The first window of a stream
// has the priority 255 and is not asked of the budget.
func (s *budgetSpan) ReserveMemory(size int, prio uint8) error {
	if prio == 255 {
		return nil
	}
	if !s.b.reserve(int64(size)) {
		return errBudget
	}
	s.used.Add(int64(size))
	return nil
}

// ReleaseMemory implements yamux.MemoryManager.
func (s *budgetSpan) ReleaseMemory(size int) {
	s.used.Add(-int64(size))
	s.b.used.Add(-int64(size))
}

// Done implements yamux.MemoryManager.
func (s *budgetSpan) Done() { s.b.used.Add(-s.used.Swap(0)) }
