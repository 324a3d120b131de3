//go:build linux

package main

import (
	"context"
	"errors"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// stalledReaders is how many streams are never read. With konnectivity one is
// enough to stop all others.
const stalledReaders = 50

// stalledFill is when the stalled streams have filled whatever holds them: windows
// and sockets of some 350 KB each, which the line takes three seconds for. Until then
// they are not stalled: they are downloads.
const stalledFill = 6 * time.Second

// stalledResult is what new streams did before and after.
type stalledResult struct {
	before, after latencies
	sent          int // streams that were opened and asked for more than they read
}

// measureStalled opens streams whose clients never read, and looks at what new
// streams take then.
func measureStalled(ctx context.Context, w *world) ([]bench.Row, error) {
	l := line{name: "60 ms, clean", shape: netlab.WAN(50, 60*time.Millisecond)}
	subjects := []subject{ours("ours", tunnel.CongestionTolerant)}
	subjects = append(subjects, w.konnectivities()...)
	n := 200
	if w.quick {
		n = 100
	}
	got, err := each(ctx, w, subjects, l, func(ctx context.Context, _ *bed, dial dialer) (stalledResult, error) {
		return stalled(ctx, dial, n)
	})
	if err != nil {
		return nil, err
	}
	done, ratio := make([]bench.Sample, len(subjects)), make([]bench.Sample, len(subjects))
	for i := range got {
		for _, r := range got[i] {
			done[i] = append(done[i], 100*float64(r.after.total-r.after.unfinished)/float64(r.after.total))
			ratio[i] = append(ratio[i], r.after.p99/r.before.p99)
		}
	}
	w.report("new streams that complete beside stalled ones", "%", subjects, done)
	w.report("their p99 by that of before", "ratio", subjects, ratio)
	// More is better here, and rows know that of rates only: what is not
	// completed is what is shown.
	missing := make([]bench.Sample, len(subjects))
	for i := range done {
		for _, v := range done[i] {
			missing[i] = append(missing[i], 100-v)
		}
	}
	rows := compare("new streams that do not complete beside 50 never-read streams, "+l.name, "%", 0, subjects, missing)
	rows[0] = rows[0].Aiming(0)
	return append(rows, compare("p99 of new streams beside 50 never-read streams, by p99 without them, "+l.name, "ratio", 1.2, subjects, ratio)...), nil
}

func stalled(ctx context.Context, dial dialer, n int) (r stalledResult, err error) {
	if r.before, err = newStreams(ctx, dial, n); err != nil {
		return r, err
	}
	if r.before.unfinished > 0 {
		return r, errors.New("streams do not complete even without stalled ones")
	}
	for range stalledReaders {
		sctx, cancel := context.WithTimeout(ctx, dialBound)
		c, err := dial(sctx)
		cancel()
		if err != nil {
			break // a peer that is stuck already
		}
		defer c.Close()
		if _, err := c.Write([]byte{askBulk}); err != nil {
			return r, err
		}
		r.sent++
	}
	select {
	case <-time.After(stalledFill):
	case <-ctx.Done():
		return r, ctx.Err()
	}
	r.after, err = newStreams(ctx, dial, n)
	return r, err
}
