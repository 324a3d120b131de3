package gateway

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
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
	// stallBudget is what connections that nobody reads may make the process
	// hold, whichever nodes they are of.
	stallBudget = 512 << 20
	// returnRate is how many nodes a second are to return when this gateway is
	// lost; see tunnel.Welcome.SpreadMS.
	returnRate = 500
	// sessionRate and sessionBurst bound the sessions of one node: two processes
	// with one identity that supersede each other, or a crash loop.
	sessionRate  = rate.Limit(0.5)
	sessionBurst = 30
	// sessionRetry is how long such a node is asked to stay away.
	sessionRetry = 30 * time.Second
	// maxSessionNodes bounds the memory for it; see maxJoinSources.
	maxSessionNodes = 16384
)

// spread is what WELCOME says.
func (g *Gateway) spread() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Duration(len(g.all)) * time.Second / returnRate
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
