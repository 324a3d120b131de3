package mirror

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// reconnectSpread is within what time streams begin again once the link is
	// back: of all nodes of a gateway that has restarted, and all their streams.
	reconnectSpread = 500 * time.Millisecond
	// trialEvery bounds the time between two trials of a node while its apiserver is
	// there and unwell (its etcd is being restored, it starts, it has too much to do),
	// once the first ones have failed: half of it at least. All streams that fail
	// share the trials, and the first that gets an answer wakes the others. So a node
	// goes on 5 s and reconnectSpread after its apiserver does at the latest, which
	// hears of a thousand nodes with twenty streams each some 270 requests a second
	// until then. Each stream by itself would have to ask as often: 5300 a second.
	trialEvery = 5 * time.Second
	// trialsLast is how long a stream fails before it waits for its own backoff too: an
	// apiserver that starts is well by then. One that refuses a single collection for
	// good would hear of a trial every few seconds, some 23,000 a day from each node.
	trialsLast = 5 * time.Minute
	// returnWithin bounds the wait after a failure once the link has been cut and is
	// there again: a link that flaps is no reason to stay behind when it has ceased to.
	returnWithin = 5 * time.Second
)

// SetLink says whether the apiserver can be reached. Streams begin as soon as it
// can, and are not tried while it cannot.
func (m *Mirror) SetLink(online bool, now time.Time) {
	m.Cache.SetLink(online, now)
	m.mu.Lock()
	defer m.mu.Unlock()
	if online == m.online {
		return
	}
	m.online, m.since = online, now
	m.lastTrial = time.Time{} // whoever waited for one begins anew
	if online {
		m.parted = make(chan struct{})
		close(m.connected)
	} else {
		m.connected = make(chan struct{})
		close(m.parted)
	}
}

// onlineSince is since when the link has been there; zero while it is cut.
func (m *Mirror) onlineSince() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.online {
		return time.Time{}
	}
	return m.since
}

// awaitLink waits until the link is there, and returns what is closed when it goes
// again. A false return is the end of ctx.
func (m *Mirror) awaitLink(ctx context.Context) (parted <-chan struct{}, ok bool) {
	for {
		m.mu.Lock()
		online, connected, parted := m.online, m.connected, m.parted
		m.mu.Unlock()
		if online {
			return parted, ctx.Err() == nil
		}
		select {
		case <-connected:
			if !m.wait(ctx, rand.N(reconnectSpread)) {
				return nil, false
			}
		case <-ctx.Done():
			return nil, false
		}
	}
}

// wait pauses; false once ctx is done.
func (m *Mirror) wait(ctx context.Context, d time.Duration) bool {
	t := m.clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C():
		return true
	case <-ctx.Done():
		return false
	}
}

// pause is the wait after a failure. It ends sooner when the link goes, for its return
// is waited for then, and when an apiserver that was unwell has answered. False once
// ctx is done.
func (m *Mirror) pause(ctx context.Context, d time.Duration, parted, answered <-chan struct{}) bool {
	began := m.clock.Now()
	t := m.clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C():
		return true
	case <-answered:
		return m.wait(ctx, rand.N(reconnectSpread))
	case <-parted:
		return m.wait(ctx, min(d-m.clock.Since(began), upTo(returnWithin)))
	case <-ctx.Done():
		return false
	}
}

// upTo is a time by chance: d, or up to half of it less.
func upTo(d time.Duration) time.Duration { return d - rand.N(d/2) }

// trial is how long a stream waits for its turn to try whether an apiserver that is
// unwell has recovered, and what is closed when another has found that it has: see
// trialEvery.
func (m *Mirror) trial() (time.Duration, <-chan struct{}) {
	now := m.clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lastTrial.Before(now) {
		m.lastTrial = now
	}
	m.lastTrial = m.lastTrial.Add(upTo(trialEvery))
	return m.lastTrial.Sub(now), m.answered
}

// well wakes whoever waits for a trial: the apiserver has answered.
func (m *Mirror) well() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lastTrial.IsZero() {
		return // nobody does
	}
	m.lastTrial = time.Time{}
	close(m.answered)
	m.answered = make(chan struct{})
}
