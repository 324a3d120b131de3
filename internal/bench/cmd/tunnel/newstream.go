//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// dialEvery is the rate of new streams, as in a cluster whose operators and
	// probes never rest.
	dialEvery = 20 * time.Millisecond
	// dialBound ends a dial that does not come back; it counts with this time.
	dialBound = 10 * time.Second
)

// latencies of a measurement in milliseconds; what did not finish counts with
// dialBound.
type latencies struct {
	p50, p99   float64
	unfinished int
	total      int
}

// measureNewStream is the time from CONNECT to the first byte back.
func measureNewStream(ctx context.Context, w *world) ([]bench.Row, error) {
	wan := netlab.WAN(50, 60*time.Millisecond)
	cases := []struct {
		line
		background byte // what a stream beside asks the target for; 0: there is none
		p50, p99   float64
	}{
		{line{name: "60 ms, clean", shape: wan}, 0, 66, 75},
		{line{name: "60 ms, 2 % loss each way, 5 Mbit/s in the background", shape: wan.WithLoss(0.02)}, askPaced, 80, 200},
		{line{name: "60 ms, clean, a bulk transfer beside", shape: wan}, askBulk, 0, 0},
	}
	subjects := []subject{ours("ours", tunnel.CongestionTolerant)}
	subjects = append(subjects, w.konnectivities()...)
	n := 200
	if w.quick {
		n = 100
	}
	var rows []bench.Row
	for _, c := range cases {
		got, err := each(ctx, w, subjects, c.line, func(ctx context.Context, _ *bed, dial dialer) (latencies, error) {
			if c.background != 0 {
				stop, err := background(ctx, dial, c.background)
				if err != nil {
					return latencies{}, err
				}
				defer stop()
			}
			return newStreams(ctx, dial, n)
		})
		if err != nil {
			return nil, err
		}
		p50, p99 := make([]bench.Sample, len(subjects)), make([]bench.Sample, len(subjects))
		for i := range got {
			for _, l := range got[i] {
				p50[i], p99[i] = append(p50[i], l.p50), append(p99[i], l.p99)
				if l.unfinished > 0 {
					w.say("  %s: %d of %d dials did not finish within %s", subjects[i].name, l.unfinished, l.total, dialBound)
				}
			}
		}
		w.report("new stream p50, "+c.name, "ms", subjects, p50)
		w.report("new stream p99, "+c.name, "ms", subjects, p99)
		rows = append(rows, compare("new stream, CONNECT to first byte, p50, "+c.name, "ms", c.p50, subjects, p50)...)
		rows = append(rows, compare("new stream, CONNECT to first byte, p99, "+c.name, "ms", c.p99, subjects, p99)...)
	}
	return rows, nil
}

// newStreams dials n times, one every dialEvery, whether or not the earlier
// ones are done.
func newStreams(ctx context.Context, dial dialer, n int) (latencies, error) {
	times := make([]float64, n)
	var mu sync.Mutex // guards unfinished
	unfinished := 0
	var wg sync.WaitGroup
	tick := time.NewTicker(dialEvery)
	defer tick.Stop()
	for i := range n {
		select {
		case <-ctx.Done():
			return latencies{}, ctx.Err()
		case <-tick.C:
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, dialBound)
			defer cancel()
			d, err := firstByte(ctx, dial)
			if err != nil {
				d = dialBound
				mu.Lock()
				unfinished++
				mu.Unlock()
			}
			times[i] = float64(d) / float64(time.Millisecond)
		})
	}
	wg.Wait()
	return latencies{p50: quantile(times, 0.5), p99: quantile(times, 0.99), unfinished: unfinished, total: n}, ctx.Err()
}

// background keeps a stream going until stop. It has flowed for a second when
// background returns.
func background(ctx context.Context, dial dialer, ask byte) (stop func(), err error) {
	c, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("background stream: %w", err)
	}
	if _, err := c.Write([]byte{ask}); err != nil {
		return nil, fmt.Errorf("background stream: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, c) // until it is closed
	}()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	return func() { c.Close(); <-done }, nil
}
