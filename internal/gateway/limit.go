package gateway

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// joinRate and joinBurst bound join attempts of one source address: a site
	// of fifty devices behind one NAT joins within a minute, while guessing
	// tokens (160 bits) or loading the apiserver does not get anywhere.
	joinRate  = rate.Limit(1)
	joinBurst = 20
	// maxJoinSources bounds the memory for it: about 200 bytes each. When all
	// places are taken by recent sources, the rest share one limiter.
	maxJoinSources = 4096
	// maxJoins is how many joins are worked on at once; each is a handful of
	// apiserver calls.
	maxJoins = 32
	// handshakeRate is how many handshakes a second are begun without making the
	// source address prove itself first (QUIC Retry, one round trip more). A
	// handshake costs about a millisecond of CPU.
	handshakeRate = 500
	// maxHandshakeRate is how many are begun at all: what one core can do. More
	// are refused before any work is done for them, and the agents come back
	// after a jittered while, or go to another gateway.
	maxHandshakeRate = 1000
	// maxUnderWay is how many QUIC handshakes may be under way: of more than a
	// gateway can finish within tunnel.HandshakeTimeout all would fail, and all be
	// tried again. It is enough for one that finishes eighty a second. One source
	// may have half of them.
	maxUnderWay, maxUnderWayFrom = 400, 200
	// turnedFor is how long a peer that was turned away is remembered at least, and
	// maxTurned how many are: some 40 bytes each.
	turnedFor = time.Second
	maxTurned = 4096
	// manyUnderWay are a reason to make addresses prove themselves: made-up ones
	// would not get further and take the places of others. It is more than there are
	// where nodes return at mostReturns and each takes nearly half a second: a Retry is
	// more work, for both ends, where there is already much.
	manyUnderWay = 200
	// stallBudget is what connections that nobody reads may make the process
	// hold, whichever nodes they are of.
	stallBudget = 512 << 20
	// leastSpread is what agents do by themselves: less need not be asked for.
	leastSpread = 500 * time.Millisecond
	// sessionRate and sessionBurst bound the sessions of one node: two processes
	// with one identity that supersede each other, or a crash loop.
	sessionRate  = rate.Limit(0.5)
	sessionBurst = 30
	// sessionRetry is how long such a node is asked to stay away.
	sessionRetry = 30 * time.Second
	// maxSessionNodes bounds the memory for it; see maxJoinSources.
	maxSessionNodes = 16384
)

// spread is over how long this gateway's nodes are to return if it is lost.
func (g *Gateway) spread() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Duration(float64(len(g.all)) / g.pace.returns() * float64(time.Second))
}

// underWay counts QUIC handshakes that have begun and may still be finished.
// quic-go does not say when one has failed; it counts until the time is over.
type underWay struct {
	mu    sync.Mutex // guards all below
	begun []beginning
	from  map[netip.Prefix]int // of begun, by source

	// turned are peers that were turned away, in this turnedFor and in the one
	// before: a handshake begins with two packets, and one of which only the second
	// was taken would hold a place until its time is over.
	turned      [2]map[netip.AddrPort]struct{}
	turnedSince time.Time // this turnedFor's beginning
}

type beginning struct {
	at   time.Time
	peer netip.AddrPort
}

// begin counts one more of that peer and returns true, unless there are too many.
func (u *underWay) begin(now time.Time, peer netip.AddrPort) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.expireLocked(now)
	from := source(peer.Addr())
	if u.turnedLocked(peer) || len(u.begun) >= maxUnderWay || u.from[from] >= maxUnderWayFrom {
		u.turnLocked(peer)
		return false
	}
	if u.from == nil {
		u.from = map[netip.Prefix]int{}
	}
	u.begun = append(u.begun, beginning{now, peer})
	u.from[from]++
	return true
}

// done says that the peer's is finished.
func (u *underWay) done(peer netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.IndexFunc(u.begun, func(b beginning) bool { return b.peer == peer })
	if i < 0 {
		return // it took longer than it counts, or came from another address on the way
	}
	u.begun = slices.Delete(u.begun, i, i+1)
	u.forgetLocked(peer)
}

func (u *underWay) turnedLocked(peer netip.AddrPort) bool {
	for _, set := range u.turned {
		if _, ok := set[peer]; ok {
			return true
		}
	}
	return false
}

func (u *underWay) turnLocked(peer netip.AddrPort) {
	if u.turned[0] == nil {
		u.turned[0] = map[netip.AddrPort]struct{}{}
	}
	if len(u.turned[0]) < maxTurned {
		u.turned[0][peer] = struct{}{}
	}
}

// many reports whether there are.
func (u *underWay) many(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.expireLocked(now)
	return len(u.begun) >= manyUnderWay
}

func (u *underWay) expireLocked(now time.Time) {
	n := 0
	for n < len(u.begun) && now.Sub(u.begun[n].at) >= tunnel.HandshakeTimeout {
		u.forgetLocked(u.begun[n].peer)
		n++
	}
	u.begun = slices.Delete(u.begun, 0, n)
	switch since := now.Sub(u.turnedSince); {
	case since >= 2*turnedFor:
		u.turned, u.turnedSince = [2]map[netip.AddrPort]struct{}{}, now
	case since >= turnedFor:
		u.turned, u.turnedSince = [2]map[netip.AddrPort]struct{}{nil, u.turned[0]}, now
	}
}

func (u *underWay) forgetLocked(peer netip.AddrPort) {
	from := source(peer.Addr())
	if u.from[from]--; u.from[from] == 0 {
		delete(u.from, from)
	}
}

// keyLimiter is a rate limiter per key, bounded in memory.
type keyLimiter[K comparable] struct {
	limit rate.Limit
	burst int
	max   int

	mu    sync.Mutex // guards all below
	by    map[K]*limiterEntry
	other *rate.Limiter
}

type limiterEntry struct {
	l    *rate.Limiter
	last time.Time
}

func newKeyLimiter[K comparable](limit rate.Limit, burst, max int) *keyLimiter[K] {
	return &keyLimiter[K]{limit: limit, burst: burst, max: max,
		by: map[K]*limiterEntry{}, other: rate.NewLimiter(limit, burst)}
}

// source is what one site has of addresses: an IPv4 address, or the /64 of an
// IPv6 one.
func source(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	// The error is for bits that do not fit the family; the zero prefix is as
	// good a key as any for the invalid address.
	p, _ := addr.Prefix(bits)
	return p
}

func (a *keyLimiter[K]) allow(key K, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.by[key]
	if e == nil {
		if len(a.by) >= a.max {
			a.evict(now)
		}
		if len(a.by) >= a.max {
			return a.other.AllowN(now, 1)
		}
		e = &limiterEntry{l: rate.NewLimiter(a.limit, a.burst)}
		a.by[key] = e
	}
	e.last = now
	return e.l.AllowN(now, 1)
}

// evict drops the keys whose limiter is full again: forgetting them changes
// nothing.
func (a *keyLimiter[K]) evict(now time.Time) {
	refill := time.Duration(float64(a.burst) / float64(a.limit) * float64(time.Second))
	for k, e := range a.by {
		if now.Sub(e.last) >= refill {
			delete(a.by, k)
		}
	}
}
