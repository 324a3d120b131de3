package replica

// Watch is a place in a collection's ring. It belongs to one goroutine.
type Watch struct {
	table *table
	// next is the number of the first event not taken.
	next uint64
	// taken is the version of the last event taken, or where the watch began.
	taken Version
}

// Ready returns a channel that is closed once Take may have something to return
// (and sometimes when it has not: it is closed for bookmarks too). Ask for it
// anew after each Take.
func (w *Watch) Ready() <-chan struct{} { return w.table.ready(w.next) }

// Take returns up to limit events that have come, in order, or none. An error is
// ErrExpired: the watch is over and all events before were taken or are lost.
func (w *Watch) Take(limit int) ([]*Event, error) {
	events, err := w.table.take(w.next, limit)
	if len(events) > 0 {
		w.next += uint64(len(events))
		w.taken = events[len(events)-1].Version()
	}
	return events, err
}

// Version is what a bookmark sent now may carry: the collection's, where every
// event was taken, else that of the last one taken.
func (w *Watch) Version() Version { return w.table.bookmark(w.next, w.taken) }
