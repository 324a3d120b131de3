//go:build linux

package main

import (
	"context"
	"slices"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// lanTime is how long a transfer in the LAN takes: 4 Gbit.
const lanTime = 4 * time.Second

type lanResult struct {
	rate        float64 // Mbit/s
	cloud, edge float64 // CPU-seconds per Gbit of the two ends
}

// measureLAN is one stream over a veth pair at 1 Gbit/s, no emulator. Target and
// client share the machine with the tunnel, so that subjects take turns. Ours is judged
// over QUIC and, as a pool of such a site may have it, over TCP.
func measureLAN(ctx context.Context, w *world) ([]bench.Row, error) {
	alone := *w
	alone.parallel = 1
	peers := w.konnectivities()
	overQUIC := append([]subject{ours("ours", tunnel.CongestionTolerant), bare()}, peers...)
	overTCP := append([]subject{oursOverTCP()}, peers...)
	subjects := append(slices.Clone(overQUIC), overTCP[0])
	n := len(overQUIC)
	l := line{name: "LAN, veth at 1 Gbit/s", cable: 1000}
	got, err := each(ctx, &alone, subjects, l, func(ctx context.Context, b *bed, dial dialer) (r lanResult, err error) {
		var before, after [2]time.Duration
		for i := range before {
			if before[i], err = cpu(b.ends[i]); err != nil {
				return r, err
			}
		}
		if r.rate, err = bulk(ctx, dial, lanTime); err != nil {
			return r, err
		}
		for i := range after {
			if after[i], err = cpu(b.ends[i]); err != nil {
				return r, err
			}
		}
		gbit := r.rate * lanTime.Seconds() / 1000
		r.cloud, r.edge = (after[0]-before[0]).Seconds()/gbit, (after[1]-before[1]).Seconds()/gbit
		return r, nil
	})
	if err != nil {
		return nil, err
	}
	quantities := []struct {
		name, unit string
		aim        float64
		of         func(lanResult) float64
	}{
		{"bulk, one stream, node to cloud", "Mbit/s", 900, func(r lanResult) float64 { return r.rate }},
		{"processor time of the gateway (receives)", "CPU-s per Gbit", 0.5, func(r lanResult) float64 { return r.cloud }},
		{"processor time of the agent (sends)", "CPU-s per Gbit", 0.5, func(r lanResult) float64 { return r.edge }},
	}
	var rows []bench.Row
	for _, q := range quantities {
		samples := make([]bench.Sample, len(subjects))
		for i := range got {
			for _, r := range got[i] {
				samples[i] = append(samples[i], q.of(r))
			}
		}
		w.report(l.name+", "+q.name, q.unit, subjects, samples)
		rows = append(rows, compare(q.name+", "+l.name+", QUIC", q.unit, q.aim, overQUIC, samples[:n])...)
		rows = append(rows, compare(q.name+", "+l.name+", transport tcp", q.unit, q.aim, overTCP, slices.Concat(samples[n:], samples[n-len(peers):n]))...)
	}
	return rows, nil
}
