package congestion

import (
	"math"
	"time"
)

const (
	// initialWindow in packets: as quic-go and most servers begin.
	initialWindow = 32
	// minWindow in packets keeps acknowledgements coming on any path.
	minWindow = 8
	// initialRTT paces the first window before any round trip was measured.
	initialRTT = 100 * time.Millisecond

	// startupGain doubles what is on the way in each round: 2/ln 2.
	startupGain = 2.885
	// windowGain is how many bandwidth-delay products may be on the way. Above
	// one it covers acknowledgements that come late or in clumps, and jitter up
	// to the whole round trip.
	windowGain = 2.0
	// minHold is the shortest time that what is sent counts as on the way:
	// on a LAN the machines' own scheduling, not the wire, is what a round trip
	// consists of.
	minHold = 4 * time.Millisecond

	// minRound is the shortest round. A round trip of a LAN is over before a
	// busy machine has scheduled both ends once.
	minRound = 20 * time.Millisecond
	// rateRounds is for how many rounds the best delivery rate is believed: one
	// cycle of gains and a little.
	rateRounds = 10
	// fullRounds without growth of growthWanted end the startup.
	fullRounds   = 3
	growthWanted = 1.25
	// So does a queue: round trips longer than the shortest one by a quarter of
	// it, within bounds that jitter does not reach and a line's queue does,
	// fullSamples in a row and for half a round trip: a machine that did not
	// schedule an end for a while has to be told from that.
	fullSamples  = 16
	fullQueueMin = 8 * time.Millisecond
	fullQueueMax = 30 * time.Millisecond
	// seemsFullGain is the gain from fullSamples on until it is sure: to go on with
	// startupGain for half a round trip would overfill most queues.
	seemsFullGain = 0.75
	// settleRounds is how long what startup has overfilled is still reported.
	settleRounds = 2

	// rttWindow is how long the shortest round trip is believed without having
	// been seen again; probeTime is how long little is sent to see it, and
	// probeGain how little.
	rttWindow = 10 * time.Second
	probeTime = 200 * time.Millisecond
	probeGain = 0.5

	// lossCeiling is the share of lost packets above which loss means
	// congestion whatever the delay says: no radio link in use loses a tenth,
	// while a policer or a neighbour that does not yield makes it so.
	lossCeiling = 0.10
	// lossSample is how many packets that share is taken over at least: at 5 %
	// of 200 the ceiling is three standard deviations away.
	lossSample = 200
	// lossMadeUp is how much loss is made up for by sending more: what radio
	// loses. More would press on a policer, whose loss it may be.
	lossMadeUp = 0.05
	// lossBackoff is what the sending rate falls to, of what was delivered.
	lossBackoff = 0.9

	// queueDrain is the gain while the queue in front of the bottleneck stands
	// (queueTolerance and an eighth of the shortest round trip above it, in every
	// packet of a round): others share it, or the rate is believed too high.
	queueDrain     = 0.92
	queueTolerance = 8 * time.Millisecond
)

// triedWorth is the growth for which more is tried again at once: the rate that
// the startup found was too low, or the path got better.
const triedWorth = 1.15

// cycle is the gains after startup, one a round: try more, give back what that
// queued, then keep to what was found.
var cycle = [...]float64{1.25, 0.75, 1, 1, 1, 1, 1, 1}

type phase uint8

const (
	startup phase = iota
	drain
	cruise
	probeRTT
)

var phaseNames = [...]string{startup: "startup", drain: "drain", cruise: "cruise", probeRTT: "probe-rtt"}

// String implements fmt.Stringer.
func (p phase) String() string { return phaseNames[p] }

// Controller decides how much may be on the way and how fast it is sent. It is
// used by one goroutine. Times are durations since any fixed moment, also one
// that is yet to come.
type Controller struct {
	phase    phase
	datagram int64 // size of the largest packet

	sent  flights
	pacer pacer

	delivered   int64         // bytes, ever
	deliveredAt time.Duration // when the last of it was
	firstSent   time.Duration // when that was sent
	limitedTill int64         // senders' idleness ends once so much is delivered; 0: not idle
	blocked     bool          // the window kept the sender from sending

	rates [rateRounds]float64 // best delivery rate of each round, bytes a second
	rate  float64             // the best of rates and of this round
	round struct {
		began   time.Duration
		ends    int64   // once a packet sent after so much was delivered is acknowledged
		best    float64 // delivery rate
		sampled bool    // best is of a sender that had enough to send
		minRTT  time.Duration
	}
	full struct { // of the pipe, found in startup
		rate    float64
		rounds  int
		samples int           // of round trips that a queue has made longer, in a row
		since   time.Duration // when the first of them was
	}
	settling int // rounds whose loss is still the startup's

	minRTT   time.Duration // 0: not measured yet
	minRTTAt time.Duration
	probeEnd time.Duration
	probeMin time.Duration // shortest of those measured while probing

	gain      int     // index in cycle
	tried     bool    // more was tried in the round before
	triedFrom float64 // the rate at which that began
	queued    bool

	loss struct { // since delivered was from
		from    int64
		began   time.Duration
		packets int64
		lost    int64
	}
	lossShare   float64 // of the last sample, below the ceiling
	lostPackets int64   // ever
	newest      int64   // number of the packet that was sent last
	swallowed   int64   // up to this number what is lost, or late, says nothing: an outage had it
	path        presentPath
	outage      struct{ ended, lasted time.Duration } // the last one; see Outage

	window  int64
	started bool // a first packet was sent; before that no time is known
}

// New makes the controller of a path that nothing is known of. datagram is the
// size of the largest packet in bytes.
func New(datagram int64) *Controller {
	return &Controller{datagram: datagram, window: initialWindow * datagram}
}

// start takes the first time that is known for the beginning of everything.
func (c *Controller) start(now time.Duration) {
	c.started = true
	c.pacer = pacer{bytes: float64(minBurst * c.datagram), at: now}
	c.deliveredAt, c.firstSent = now, now
	c.round.began, c.loss.began = now, now
}

// CanSend reports whether more may be sent with so much on the way.
func (c *Controller) CanSend(inFlight int64) bool {
	if c.onPath(inFlight) < c.Window() {
		return true
	}
	c.blocked = true
	return false
}

// HasBudget reports whether a packet may be sent now and need not wait for Next.
func (c *Controller) HasBudget(now time.Duration) bool {
	return !c.started || c.pacer.budget(now, c.pacing(), c.datagram) >= float64(c.datagram)
}

// Next is when the next packet may be sent.
func (c *Controller) Next() time.Duration { return c.pacer.next(c.pacing(), c.datagram) }

// SetDatagramSize tells the size of the largest packet.
func (c *Controller) SetDatagramSize(n int64) { c.datagram = n }

// InStartup reports whether the path's rate is still being found.
func (c *Controller) InStartup() bool { return c.phase == startup }

// pacing is the rate to send at in bytes a second.
func (c *Controller) pacing() float64 {
	if c.path.state == unproven {
		// Over the round trips that it takes the other end to follow to the new path,
		// so that there is room on it for what that needs.
		return float64(initialWindow*c.datagram) / (provenAfter * max(c.minRTT, initialRTT).Seconds())
	}
	if c.rate == 0 {
		rtt := initialRTT
		if c.minRTT > 0 {
			rtt = c.minRTT
		}
		return startupGain * float64(c.window) / rtt.Seconds()
	}
	if c.phase == startup {
		// The first windows are too short to measure a rate by.
		return c.pacingGain() * max(c.rate, float64(initialWindow*c.datagram)/max(c.minRTT, minHold).Seconds())
	}
	// What one round trip of the smallest window makes is the least.
	return max(c.rate*c.pacingGain(), float64(minWindow*c.datagram)/max(c.minRTT, minHold).Seconds())
}

func (c *Controller) pacingGain() float64 {
	if c.path.state == onTrial {
		return 1
	}
	switch c.phase {
	case startup:
		if c.seemsFull() {
			return seemsFullGain
		}
		return startupGain
	case drain:
		return 1 / startupGain
	case probeRTT:
		return 1
	}
	switch g := cycle[c.gain]; {
	case g != 1:
		return g
	case c.queued:
		return queueDrain
	default:
		// What the line loses is sent on top: as much is to arrive as it
		// delivers. Where that builds a queue, the queue says so.
		return 1 / (1 - min(c.lossShare, lossMadeUp))
	}
}

// OnSent is told of a packet. tracked says that it will be acknowledged or
// reported lost; inFlight is what was on the way before.
func (c *Controller) OnSent(now time.Duration, inFlight, number, size int64, tracked bool) {
	if !c.started {
		c.start(now)
	}
	c.newest = number
	inFlight = c.onPath(inFlight)
	rate := c.pacing()
	idle := c.pacer.budget(now, rate, c.datagram) >= burst(rate, c.datagram) && !c.blocked && inFlight < c.Window()*3/4
	c.pacer.sent(now, size, rate, c.datagram)
	c.blocked = false
	if !tracked {
		return
	}
	if idle && c.rate > 0 {
		// The bucket was full and the window open: nobody had anything to send.
		c.limitedTill = max(c.delivered+inFlight+size, 1)
	}
	if inFlight == 0 {
		c.firstSent, c.deliveredAt = now, now
	}
	c.sent.add(flight{
		number: number, sent: now, size: int32(size), here: true,
		delivered: c.delivered, deliveredAt: c.deliveredAt, firstSent: c.firstSent,
		senderLimited: c.limitedTill > 0,
	})
}

// OnAcked is told of each packet that has arrived; inFlight is what was on the
// way before.
func (c *Controller) OnAcked(now time.Duration, number, size, inFlight int64) {
	inFlight = c.onPath(inFlight)
	if c.ofPathBefore(number, size) {
		c.sent.take(number)
		return
	}
	c.delivered += size
	if c.limitedTill > 0 && c.delivered > c.limitedTill {
		c.limitedTill = 0
	}
	p, ok := c.sent.take(number)
	if !ok {
		return // sent before this controller was there
	}
	if now <= p.sent {
		return // a clock that stands still measures nothing
	}
	if c.path.state == unproven || c.minRTT > 0 && now-c.deliveredAt > max(silence, silentRounds*c.minRTT) {
		c.endOutage(now)
	}
	c.deliveredAt = now
	c.firstSent = max(c.firstSent, p.sent)
	c.loss.packets++
	c.measureRTT(now, now-p.sent)
	// Never faster than it was sent, never faster than it arrived.
	if d := max(p.sent-p.firstSent, now-p.deliveredAt); d > 0 {
		r := float64(c.delivered-p.delivered) / d.Seconds()
		if c.path.state == onTrial {
			c.path.best = max(c.path.best, r)
		}
		if !p.senderLimited || r > c.rate {
			c.round.sampled = true
			c.round.best = max(c.round.best, r)
			c.rate = max(c.rate, r)
		}
	}
	if p.delivered >= c.round.ends && now-c.round.began >= minRound {
		c.nextRound(now, p.senderLimited)
	}
	c.advance(now, inFlight-size)
	c.setWindow(size)
}

// measureRTT keeps the shortest round trip.
func (c *Controller) measureRTT(now, rtt time.Duration) {
	if c.round.minRTT == 0 || rtt < c.round.minRTT {
		c.round.minRTT = rtt
	}
	if c.phase == probeRTT && (c.probeMin == 0 || rtt < c.probeMin) {
		c.probeMin = rtt
	}
	if c.phase == startup || c.path.state == onTrial {
		c.checkQueue(now, rtt)
	}
	switch {
	case c.minRTT == 0 || rtt <= c.minRTT:
		c.minRTT, c.minRTTAt = rtt, now
	case rtt <= c.minRTT+max(time.Millisecond, c.minRTT/16):
		c.minRTTAt = now // as good as the same
	}
}

// nextRound ends a round.
func (c *Controller) nextRound(now time.Duration, senderLimited bool) {
	r := &c.round
	if r.sampled {
		copy(c.rates[1:], c.rates[:])
		c.rates[0] = r.best
		c.rate = 0
		for _, v := range c.rates {
			c.rate = max(c.rate, v)
		}
	}
	// What is left was given up without a word, such as packets that probe the MTU.
	c.path.inFlight = 0
	if c.path.state == onTrial {
		// The first round is of what was sent before the path was proven.
		if r.sampled {
			c.path.trial++
		}
		if c.path.trial > trialRounds {
			c.endTrial(false)
		}
	}
	c.queued = r.minRTT > 0 && r.minRTT-c.minRTT > queueTolerance+c.minRTT/8
	if c.phase == startup && r.sampled && !senderLimited {
		c.checkFull()
	}
	if c.phase == cruise {
		c.nextGain()
	}
	c.beginRound(now)
	c.sent.expire(now - 10*time.Second)
	if c.phase == cruise && c.settling > 0 {
		c.settling--
		c.restartLoss(now)
	}
	c.checkLoss(now)
}

func (c *Controller) beginRound(now time.Duration) {
	r := &c.round
	r.began, r.ends = now, c.delivered
	r.best, r.sampled, r.minRTT = 0, false, 0
}

// believe forgets what was delivered in other rounds.
func (c *Controller) believe(rate float64) {
	clear(c.rates[:])
	c.rate, c.rates[0] = rate, rate
}

// nextGain goes on in the cycle.
func (c *Controller) nextGain() {
	switch {
	case cycle[c.gain] > 1:
		c.tried = true
	case c.tried:
		// The round after: what was tried has been answered.
		c.tried = false
		if c.rate >= c.triedFrom*triedWorth {
			c.gain = len(cycle) - 1
		}
	}
	c.gain = (c.gain + 1) % len(cycle)
	if cycle[c.gain] > 1 {
		c.triedFrom = c.rate
	}
}

// checkQueue ends the startup, or the trial of a path, when a queue has built.
func (c *Controller) checkQueue(now, rtt time.Duration) {
	f := &c.full
	if c.minRTT == 0 || rtt-c.minRTT <= min(max(c.minRTT/4, fullQueueMin), fullQueueMax) {
		f.samples = 0
		return
	}
	if f.samples == 0 {
		f.since = now
	}
	if f.samples++; f.samples < fullSamples || now-f.since < c.minRTT/2 {
		return
	}
	if c.phase == startup {
		c.leaveStartup()
	} else {
		c.endTrial(true)
	}
	f.samples = 0
}

// seemsFull reports whether it looks as if a queue had built.
func (c *Controller) seemsFull() bool { return c.full.samples >= fullSamples }

func (c *Controller) leaveStartup() { c.phase, c.settling = drain, settleRounds }

// checkFull ends the startup when the rate has stopped to grow.
func (c *Controller) checkFull() {
	if c.rate >= c.full.rate*growthWanted {
		c.full.rate, c.full.rounds = c.rate, 0
		return
	}
	if c.full.rounds++; c.full.rounds >= fullRounds {
		c.leaveStartup()
	}
}

// checkLoss looks at whether loss has passed the ceiling.
func (c *Controller) checkLoss(now time.Duration) {
	l := &c.loss
	if l.packets+l.lost < lossSample || c.phase == drain {
		return
	}
	c.lossShare = float64(l.lost) / float64(l.packets+l.lost)
	if c.lossShare > lossCeiling {
		c.lossShare = 0 // nothing is made up for
		if c.phase == startup {
			// It has filled the queue to its end. What is delivered meanwhile is
			// the path's rate, so nothing is to be forgotten.
			c.leaveStartup()
		} else if d := now - l.began; d > 0 {
			// Believe what has arrived lately, and nothing from before.
			r := float64(c.delivered-l.from) / d.Seconds() * lossBackoff
			c.believe(min(c.rate, r))
			c.gain = 2 // no trying for more until the cycle comes round
		}
	}
	c.restartLoss(now)
}

func (c *Controller) restartLoss(now time.Duration) {
	c.loss.from, c.loss.began, c.loss.packets, c.loss.lost = c.delivered, now, 0, 0
}

// advance moves from phase to phase; inFlight is what is on the way.
func (c *Controller) advance(now time.Duration, inFlight int64) {
	switch c.phase {
	case drain:
		if float64(inFlight) <= c.product(1) {
			c.phase, c.gain = cruise, 2
		}
	case cruise:
		// What trying has queued is gone: keep to the rate at once.
		if cycle[c.gain] < 1 && float64(inFlight) <= c.product(1) {
			c.gain++
		}
	case probeRTT:
		if now >= c.probeEnd {
			// What was seen meanwhile is the round trip from here on, also if it
			// is a longer one.
			if c.probeMin > 0 && now-c.minRTTAt > rttWindow {
				c.minRTT = c.probeMin
			}
			c.minRTTAt = now
			c.phase, c.gain = cruise, 2
		}
	}
	if c.phase != probeRTT && c.phase != startup && now-c.minRTTAt > rttWindow {
		c.phase = probeRTT
		c.probeEnd = now + max(probeTime, 2*c.minRTT)
		c.probeMin = 0
	}
}

// product is gain bandwidth-delay products in bytes.
func (c *Controller) product(gain float64) float64 {
	return gain * c.rate * max(c.minRTT, minHold).Seconds()
}

// setWindow follows the model after acked bytes more have arrived.
func (c *Controller) setWindow(acked int64) {
	least := float64(minWindow * c.datagram)
	if c.rate == 0 {
		return
	}
	gain := windowGain
	switch c.phase {
	case startup:
		gain = startupGain
	case probeRTT:
		gain = probeGain
	}
	// On top what leaves at once: that is in the socket, on the way and being
	// acknowledged at the same time.
	target := c.product(gain)
	if c.phase != probeRTT {
		target += 3 * min(c.rate*burstTime.Seconds(), maxBurst)
	}
	target = min(max(target, least), math.MaxInt32)
	if c.phase == startup {
		// Never down: the rate is not known yet.
		if float64(c.window) < target {
			c.window += acked
		}
		return
	}
	c.window = int64(min(target, float64(c.window+acked)))
	if c.phase == probeRTT {
		c.window = int64(target)
	}
}

// OnLost is told of each packet taken for lost.
func (c *Controller) OnLost(number, size int64) {
	c.lostPackets++
	c.ofPathBefore(number, size)
	if _, ok := c.sent.take(number); ok && number > c.swallowed {
		c.loss.lost++
	}
}

// OnSpuriousLoss is told when a packet taken for lost has arrived after all.
func (c *Controller) OnSpuriousLoss(number int64) {
	c.lostPackets--
	if number < c.path.first || number <= c.swallowed {
		return
	}
	c.delivered += c.datagram
	c.loss.packets++
	c.loss.lost = max(c.loss.lost-1, 0)
}

// OnMarked is told that the network has marked packets (ECN) instead of dropping
// them: a queue asks for less before it must drop.
func (c *Controller) OnMarked() {
	if c.phase == startup {
		c.leaveStartup()
	}
	c.queued = true
}

// Stats is the state of a controller for people.
type Stats struct {
	Phase  string
	Window int64         // bytes
	Rate   float64       // bytes a second that the path delivers
	MinRTT time.Duration // shortest round trip
	Lost   int64         // packets
}

// Stats returns the present state.
func (c *Controller) Stats() Stats {
	return Stats{Phase: c.phase.String(), Window: c.window, Rate: c.rate, MinRTT: c.minRTT, Lost: c.lostPackets}
}
