package agent

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// knockEvery and knockPatience: a knock is a first packet of TCP and its
	// repetition after a second, some 120 bytes. As often as this they are under
	// 3 MB a day, a tenth of what the attempts to connect cost meanwhile.
	knockEvery    = 4 * time.Second
	knockPatience = 2 * time.Second
	// knockSpread is for the nodes of a gateway whose own link is back: they find
	// it at once, all of them, and come spread over this, by full jitter.
	knockSpread = 3 * time.Second
)

// pause waits for d, a Poke, or, if knock is set, for a gateway that answers a knock
// and then up to knockSpread, or spread if that is more; false when ctx ended.
//
// After an outage of minutes the wait between attempts is up to maxWait, and no
// event tells the node that a link further away is back. A connection over TCP that
// is made and closed again tells, also where only UDP will carry the session: it is
// a hint, and nothing is sent on it.
func (a *Agent) pause(ctx context.Context, d time.Duration, knock bool, spread time.Duration) bool {
	if !knock || d <= knockEvery {
		return a.wait(ctx, d)
	}
	knocking, stop := context.WithCancel(ctx)
	answered := make(chan struct{})
	var knocker sync.WaitGroup
	knocker.Go(func() {
		if a.knockUntilAnswered(knocking) {
			close(answered)
		}
	})
	defer knocker.Wait()
	defer stop()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-a.poke:
	case <-answered:
		return a.wait(ctx, a.cfg.Jitter(max(knockSpread, spread)))
	}
	return ctx.Err() == nil
}

// knockUntilAnswered knocks at one address after the other; false when ctx ended.
func (a *Agent) knockUntilAnswered(ctx context.Context) bool {
	tick := time.NewTicker(knockEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		var addresses []string
		for _, c := range a.dir.candidates(time.Now()) {
			addresses = append(addresses, c.addresses...)
		}
		if len(addresses) > 0 && a.net.knock(ctx, addresses[i%len(addresses)]) {
			return true
		}
	}
}

// knock says whether something answers at a gateway's address. A proxy in between
// would answer for it, so there it is never asked.
func (d *dialer) knock(ctx context.Context, gateway string) bool {
	if proxy, err := d.proxyFor(gateway); err != nil || proxy != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, knockPatience)
	defer cancel()
	stream := d.stream
	if stream == nil {
		stream = (&net.Dialer{}).DialContext
	}
	c, err := stream(ctx, "tcp", gateway)
	if err != nil {
		// A refusal is an answer too: the link is there.
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	_ = c.Close() // nothing was sent
	return true
}

// unanswered says of a failure to connect that nothing came back, as where a link
// is cut: every error in it is a timeout, a lack of a route or of a name.
func unanswered(err error) bool {
	for err != nil {
		switch e := err.(type) { //nolint:errorlint // every error of the tree counts, not the first that fits
		case interface{ Unwrap() []error }:
			for _, one := range e.Unwrap() {
				if !unanswered(one) {
					return false
				}
			}
			return true
		case *net.DNSError:
			return true
		case syscall.Errno:
			return e.Timeout() || e == syscall.ENETUNREACH || e == syscall.EHOSTUNREACH || e == syscall.ENETDOWN || e == syscall.EADDRNOTAVAIL
		case net.Error:
			if e.Timeout() {
				return true
			}
		}
		err = errors.Unwrap(err)
	}
	return false
}
