//go:build linux

package main

import (
	"context"
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
// client share the machine with the tunnel, so that subjects take turns.
func measureLAN(ctx context.Context, w *world) ([]bench.Row, error) {
	alone := *w
	alone.parallel = 1
	subjects := []subject{ours("ours", tunnel.CongestionTolerant)}
	subjects = append(subjects, w.konnectivities()...)
	subjects = append(subjects, oursOverTCP())
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
	rate, cloud, edge := make([]bench.Sample, len(subjects)), make([]bench.Sample, len(subjects)), make([]bench.Sample, len(subjects))
	for i := range got {
		for _, r := range got[i] {
			rate[i], cloud[i], edge[i] = append(rate[i], r.rate), append(cloud[i], r.cloud), append(edge[i], r.edge)
		}
	}
	w.report(l.name, "Mbit/s", subjects, rate)
	w.report(l.name+", cloud end", "CPU-s/Gbit", subjects, cloud)
	w.report(l.name+", edge end", "CPU-s/Gbit", subjects, edge)
	rows := compare("bulk, one stream, node to cloud, "+l.name, "Mbit/s", 900, subjects, rate)
	rows = append(rows, compare("processor time of the gateway (receives), "+l.name, "CPU-s per Gbit", 0.5, subjects, cloud)...)
	return append(rows, compare("processor time of the agent (sends), "+l.name, "CPU-s per Gbit", 0.5, subjects, edge)...), nil
}
