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
)

// addrLimiter is a rate limiter per source address, bounded in memory. An IPv6
// source is its /64, which is what one site gets.
type addrLimiter struct {
	limit rate.Limit
	burst int
	max   int

	mu    sync.Mutex // guards all below
	by    map[netip.Prefix]*addrEntry
	other *rate.Limiter
}

type addrEntry struct {
	l    *rate.Limiter
	last time.Time
}

func newAddrLimiter(limit rate.Limit, burst, max int) *addrLimiter {
	return &addrLimiter{limit: limit, burst: burst, max: max,
		by: map[netip.Prefix]*addrEntry{}, other: rate.NewLimiter(limit, burst)}
}

func (a *addrLimiter) allow(addr netip.Addr, now time.Time) bool {
	addr = addr.Unmap()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	// The error is for bits that do not fit the family; the zero prefix is as
	// good a key as any for the invalid address.
	key, _ := addr.Prefix(bits)
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
		e = &addrEntry{l: rate.NewLimiter(a.limit, a.burst)}
		a.by[key] = e
	}
	e.last = now
	return e.l.AllowN(now, 1)
}

// evict drops the sources whose limiter is full again: forgetting them changes
// nothing.
func (a *addrLimiter) evict(now time.Time) {
	refill := time.Duration(float64(a.burst) / float64(a.limit) * float64(time.Second))
	for k, e := range a.by {
		if now.Sub(e.last) >= refill {
			delete(a.by, k)
		}
	}
}
