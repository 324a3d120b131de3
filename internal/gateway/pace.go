package gateway

import (
	"runtime"
	"sync"
	"time"
)

const (
	// mostReturns is how many nodes a second are to return when this gateway is lost,
	// at most; see tunnel.Spread. With what is begun at all (maxHandshakeRate) there is
	// as much again for those that must come twice; and ten thousand, who take up to
	// six seconds to notice, are back in thirty.
	mostReturns = 420
	// leastReturns is how many are, however slow the gateway: ten thousand come within
	// three minutes and a half.
	leastReturns = 50
	// returnShare of the processors is what handshakes of nodes that return may take,
	// by what they have cost here so far. The rest is for those that are back, and
	// because who takes over may be slower. Where more come than are answered within
	// tunnel.HandshakeTimeout most of the work is for nothing.
	returnShare = 0.5
	// paceSample is over how many handshakes their cost is taken, and paceWithin how
	// long they may take for it: of fewer a second the gateway's processor time says
	// little.
	paceSample, paceWithin = 100, 2 * time.Second
	// paceSamples is over how many samples they are averaged: of ten thousand nodes the
	// last cost more than the first, for there is more to collect garbage in and more
	// that are there already.
	paceSamples = 100
)

// pace measures what a node's return costs this process of processor time, from the
// first packet to the WELCOME, with the garbage that it makes. What else the gateway
// does meanwhile counts too, so that one with much to do takes itself for slower.
type pace struct {
	used  func() time.Duration // of processor, by this process so far; 0: not known
	cores int

	mu      sync.Mutex // guards all below
	n       int        // handshakes since
	since   time.Time
	began   time.Duration // used at since
	samples int           // of cost, up to paceSamples
	cost    time.Duration // of a handshake, averaged; 0: not known
}

func newPace(used func() time.Duration) *pace { return &pace{used: used, cores: runtime.GOMAXPROCS(0)} }

// done says that a handshake is.
func (p *pace) done(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == 0 || now.Sub(p.since) > paceWithin {
		p.n, p.since, p.began = 0, now, p.used()
	}
	if p.n++; p.n <= paceSample { // the first has begun it
		return
	}
	sample := (p.used() - p.began) / paceSample
	p.samples = min(p.samples+1, paceSamples)
	p.cost += (sample - p.cost) / time.Duration(p.samples)
	p.n = 0
}

// returns is how many nodes a second are to return to a gateway like this one.
func (p *pace) returns() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cost <= 0 {
		return mostReturns
	}
	return max(leastReturns, min(mostReturns, returnShare*float64(p.cores)/p.cost.Seconds()))
}
