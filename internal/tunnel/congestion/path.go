package congestion

import "time"

const (
	// silence without any acknowledgement, or silentRounds round trips if that is
	// more, is an outage: what was on the way then is lost without a word about
	// how much the path carries. A queue that is full lets through a packet every
	// few milliseconds.
	silence      = 250 * time.Millisecond
	silentRounds = 4
	// provenAfter is how many round trips pass until a path is proven: the other end
	// challenges it, and acknowledges nothing there before it has the answer.
	provenAfter = 3
	// trialPart is how much of the window of the path before is tried, for
	// trialRounds.
	trialPart   = 0.5
	trialRounds = 1
)

// pathState is what is known of the path that packets take; see Moved.
type pathState uint8

const (
	known    pathState = iota
	unproven           // nothing that was sent on it has been acknowledged
	onTrial            // half of the window of the path before is tried
)

// presentPath is the one that packets take since the last move.
type presentPath struct {
	state    pathState
	trial    int     // rounds that have told something of it
	best     float64 // delivery rate on trial, also of a sender with little to send
	first    int64   // number of the first packet on it
	inFlight int64   // bytes of the path before that still count as on the way
}

// Moved tells that packets take another path from here on, with so many bytes on
// the way: the machine's address has changed, say. They do not fill the new path,
// and what becomes of them says nothing about it.
//
// Until something of the new path is acknowledged no more than the window of a
// path that nothing is known of may be on the way there. Then its round trip is
// measured, and half of the window before is tried until a round has told what
// becomes of it. If no queue builds the rate holds for the new path too, for most
// changes are of an address or of a way out that is as good; if one does, what is
// delivered is the rate.
//
// RFC 9000 section 9.4 has a sender begin anew instead. That takes several round
// trips more, all of which a session that a person types in waits, because quic-go
// sends anew all that was lost before anything that is new. To begin with half of
// what was known is after the IETF's draft-ietf-tsvwg-careful-resume.
func (c *Controller) Moved(inFlight int64) {
	if !c.started {
		return
	}
	c.path.state, c.path.first, c.path.inFlight = unproven, c.newest+1, inFlight
	c.limitedTill = 0 // bytes of the path before
}

// onPath is how much of what is on the way is on the present path.
func (c *Controller) onPath(inFlight int64) int64 {
	c.path.inFlight = min(c.path.inFlight, inFlight)
	return inFlight - c.path.inFlight
}

// ofPathBefore reports whether a packet that is not on the way any more was sent
// on the path before, and counts it off.
func (c *Controller) ofPathBefore(number, size int64) bool {
	if number >= c.path.first {
		return false
	}
	c.path.inFlight = max(c.path.inFlight-size, 0)
	return true
}

// endOutage begins anew to count what is lost, and to measure the round trip of a
// path that is another one.
func (c *Controller) endOutage(now time.Duration) {
	c.outage.ended, c.outage.lasted = now, now-c.deliveredAt
	c.swallowed = c.newest
	c.restartLoss(now)
	if c.path.state == unproven {
		c.path.state, c.path.trial, c.path.best = onTrial, 0, 0
		c.minRTT = 0
		c.beginRound(now)
		c.full.samples = 0
		if c.phase == startup {
			c.beginAnew()
		}
	}
}

// Outage is how long nothing had been acknowledged before now, if what has just been
// is the end of an outage; 0 otherwise.
func (c *Controller) Outage(now time.Duration) time.Duration {
	if c.outage.ended != now || c.outage.lasted <= silence {
		return 0
	}
	lasted := c.outage.lasted
	c.outage.lasted = 0 // once, of the packets that one acknowledgement has
	return lasted
}

// beginAnew forgets a rate that has not been found yet: what a session with little
// to send has seen of it tells nothing of another path.
func (c *Controller) beginAnew() {
	c.path.state = known
	c.believe(0)
	c.full.rate, c.full.rounds = 0, 0
	c.window = min(c.window, initialWindow*c.datagram)
}

// endTrial takes the path for known: as good as the one before, or with a queue for
// as much as it has delivered.
func (c *Controller) endTrial(queue bool) {
	c.path.state = known
	if queue && c.path.best > 0 {
		c.believe(c.path.best)
	}
}

// Window is how many bytes may be on the way.
func (c *Controller) Window() int64 {
	switch begin := initialWindow * c.datagram; c.path.state {
	case unproven:
		return min(c.window, begin)
	case onTrial:
		return min(c.window, max(int64(trialPart*float64(c.window)), begin))
	default:
		return c.window
	}
}
