//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
)

// connectDialer speaks HTTP CONNECT on a unix socket as the apiserver does.
func connectDialer(socket string) dialer { return connectDialerTo(socket, target) }

func connectDialerTo(socket, target string) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
		if _, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target); err == nil {
			err = connected(c)
		}
		if !stop() {
			err = errors.Join(err, context.Cause(ctx))
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
}

// connected reads the answer to a CONNECT. Nothing may follow it.
func connected(c net.Conn) error {
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answer to CONNECT: %s", resp.Status)
	}
	if r.Buffered() > 0 {
		return errors.New("bytes after the answer to CONNECT")
	}
	return nil
}

// firstByte is the time from the begin of a dial until one byte has come back.
func firstByte(ctx context.Context, dial dialer) (time.Duration, error) {
	start := time.Now()
	c, err := dial(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write([]byte{askEcho, 'x'}); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// bulk reads as fast as it goes for d and returns the rate in Mbit/s. The time
// counts from the request, so that the rise to full speed is part of it.
func bulk(ctx context.Context, dial dialer, d time.Duration) (float64, error) {
	c, err := dial(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	start := time.Now()
	if _, err := c.Write([]byte{askBulk}); err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(start.Add(d)); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	var n int64
	for {
		got, err := c.Read(buf)
		n += int64(got)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && ctx.Err() == nil {
			return float64(n*8) / time.Since(start).Seconds() / 1e6, nil
		}
		if err != nil {
			return 0, fmt.Errorf("bulk transfer after %d bytes: %w", n, err)
		}
	}
}

// each measures every subject with every seed and returns each subject's
// samples in the order of the seeds. Up to w.parallel run at the same time.
func each[T any](ctx context.Context, w *world, subjects []subject, l line, f func(context.Context, *bed, dialer) (T, error)) ([][]T, error) {
	out := make([][]T, len(subjects))
	for i := range out {
		out[i] = make([]T, w.seeds)
	}
	if !strings.Contains(l.name, w.line) {
		return out, nil
	}
	errs := make([]error, len(subjects))
	for seed := range w.seeds {
		var wg sync.WaitGroup
		places := make(chan struct{}, max(1, w.parallel))
		for i := range subjects {
			if seed%2 == 1 {
				i = len(subjects) - 1 - i // every other round the other way round
			}
			if errs[i] != nil || !strings.Contains(subjects[i].name, w.subject) {
				continue
			}
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				once := func() error {
					return w.with(ctx, subjects[i], uint64(seed+1), l, func(ctx context.Context, b *bed, d dialer) (err error) {
						out[i][seed], err = f(ctx, b, d)
						return err
					})
				}
				if errs[i] = once(); errs[i] != nil && ctx.Err() == nil {
					// Peers lose their connection on such lines now and then.
					w.say("again, because it failed: %v", errs[i])
					errs[i] = once()
				}
			})
		}
		wg.Wait()
	}
	return out, errors.Join(errs...)
}

// quantile of sorted or unsorted values; q is 0 to 1.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// compare makes the rows of one quantity: ours against each peer, judged against
// the aim. Only the first row has the spread.
func compare(name, unit string, aim float64, subjects []subject, samples []bench.Sample) []bench.Row {
	var rows []bench.Row
	for i := 1; i < len(subjects); i++ {
		if i == 1 {
			rows = bench.Spread(name, unit, samples[0], subjects[i].name, samples[i])
			continue
		}
		rows = append(rows, bench.Row{Name: name + " (beside " + subjects[i].name + ")", Unit: unit, Ours: samples[0].Median()}.With(subjects[i].name, samples[i].Median()))
	}
	if len(rows) == 0 {
		rows = bench.Spread(name, unit, samples[0], "", nil)
	}
	if aim > 0 {
		rows[0] = rows[0].Aiming(aim)
	}
	return rows
}
