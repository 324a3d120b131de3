package tunnel

import "time"

const (
	// gatherFor is how long packets may gather. It is little beside what a line to
	// a node takes, and much beside the time between packets where it applies.
	gatherFor = 2 * time.Millisecond
	// gatherFrom is how many packets a second must come for it: below that few
	// would be found together, above it a wake-up for each is dear. Ten thousand
	// idle nodes send nearly twice as many.
	gatherFrom = 1000
	// gatherOver is how many packets say how often they come.
	gatherOver = gatherFrom / 10
)

// gatherer lets packets come together that come often, one by one and from many
// nodes, so that one wake-up reads several: as a network card does that raises fewer
// interrupts the more come. Acknowledgements that are delayed from when they were read
// come together too.
type gatherer struct {
	sleep func(time.Duration)

	often bool // as many as gatherFrom came in a second, when last looked
	n     int  // read since
	since time.Time
}

func newGatherer() *gatherer { return &gatherer{sleep: time.Sleep} }

// before is called before a read. full says that the last one found as many as it had
// room for: there may be more to read at once.
func (g *gatherer) before(full bool) {
	if g.often && !full {
		g.sleep(gatherFor)
	}
}

// after is told that n packets were read.
func (g *gatherer) after(n int, now time.Time) {
	if g.n += n; g.n < gatherOver {
		return
	}
	g.often = now.Sub(g.since) <= time.Second*gatherOver/gatherFrom
	g.n, g.since = 0, now
}
