//go:build linux

package main

import (
	"context"
	"slices"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// bulkTime is how long one transfer takes; on a long path the rise to full
	// speed alone takes a second or two.
	bulkTime      = 6 * time.Second
	bulkTimeLong  = 8 * time.Second
	bulkTimeQuick = 4 * time.Second
	longPath      = 200 * time.Millisecond
)

// measureBulk is one stream from the node to the cloud, as fast as it goes.
func measureBulk(ctx context.Context, w *world) ([]bench.Row, error) {
	wan := netlab.WAN(50, 60*time.Millisecond)
	cases := []struct {
		line
		aim float64
		all bool // the peers without CONNECT, and ours over TCP, too
	}{
		{line{name: "50 Mbit/s, 60 ms, clean", shape: wan}, 46, true},
		{line{name: "50 Mbit/s, 60 ms, 1 % loss each way", shape: wan.WithLoss(0.01)}, 40, false},
		{line{name: "50 Mbit/s, 60 ms, 3 % loss each way", shape: wan.WithLoss(0.03)}, 38, true},
		{line{name: "50 Mbit/s, 60 ms, 5 % loss each way", shape: wan.WithLoss(0.05)}, 35, false},
		{line{name: "50 Mbit/s, 250 ms, 0.1 % loss each way", shape: netlab.WAN(50, 250*time.Millisecond).WithLoss(0.001)}, 32, false},
		{line{name: "50 Mbit/s, 60 ms, jitter 0-5 ms with reordering, 0.5 % loss each way", shape: wan.WithLoss(0.005).WithJitter(5 * time.Millisecond)}, 0, false},
		{line{name: "50 Mbit/s, 60 ms, jitter 0-20 ms with reordering, 0.5 % loss each way", shape: wan.WithLoss(0.005).WithJitter(20 * time.Millisecond)}, 20, false},
	}
	subjects := []subject{ours("ours", tunnel.CongestionTolerant)}
	subjects = append(subjects, w.konnectivities()...)
	subjects = append(subjects, ours("ours with quic-go's NewReno", tunnel.CongestionReno))
	withAll := append(append(slices.Clone(subjects), oursOverTCP()), w.reverseTunnels()...)
	var rows []bench.Row
	for _, c := range cases {
		subjects := subjects
		if c.all {
			subjects = withAll
		}
		d := bulkTime
		switch {
		case w.quick:
			d = bulkTimeQuick
		case 2*c.shape.Delay >= longPath:
			d = bulkTimeLong
		}
		got, err := each(ctx, w, subjects, c.line, func(ctx context.Context, _ *bed, dial dialer) (float64, error) {
			return bulk(ctx, dial, d)
		})
		if err != nil {
			return nil, err
		}
		w.report("bulk, "+c.name, "Mbit/s", subjects, samplesOf(got))
		rows = append(rows, compare("bulk, one stream, node to cloud, "+c.name, "Mbit/s", c.aim, subjects, samplesOf(got))...)
	}
	return rows, nil
}

func samplesOf(v [][]float64) []bench.Sample {
	out := make([]bench.Sample, len(v))
	for i := range v {
		out[i] = v[i]
	}
	return out
}

// report says what was measured as soon as it was.
func (w *world) report(name, unit string, subjects []subject, samples []bench.Sample) {
	w.say("%s (%s)", name, unit)
	for i, s := range subjects {
		w.say("  %-40s median %8.2f   %.1f", s.name, samples[i].Median(), []float64(samples[i]))
	}
}
