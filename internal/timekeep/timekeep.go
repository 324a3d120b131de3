// Package timekeep keeps a machine without a battery for its clock from living
// before its own past. Such a machine starts in 1970, or where its firmware was
// built, and stays there for as long as nobody tells it the time: every certificate
// is then "not yet valid", and a node that is cut off could not even talk to
// itself.
//
//	start: clock < last time seen? ──► step the machine's clock to it
//	                                     │ not permitted
//	                                     ▼
//	                          Fault, until the clock has passed it
//	running: write down the time, once a minute
//
// systemd-timesyncd does the same at boot (systemd-timesyncd.service(8), "the
// local clock is advanced to the modification timestamp of this file"); a node may
// run where there is none. While it runs, a clock that is set back is believed:
// somebody who knows the time did so, and the record follows.
package timekeep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

const (
	// interval between two writings of the time: what a step may be short of. It
	// costs an inode's times, without a flush.
	interval = time.Minute
	// tolerance of a clock that is behind: corrections of a clock that ran fast, and
	// what a daemon that starts again finds of one. Certificates begin a day before
	// they are made.
	tolerance = 10 * time.Minute
)

// Options of New. Path and Set are required.
type Options struct {
	// Path of the file whose time of modification is the last time seen. Its
	// directory exists.
	Path string
	// Set sets the machine's clock.
	Set func(time.Time) error
	// Clock of the machine; real time where nil.
	Clock clock.WithTicker
	// Logger; slog.Default where nil.
	Logger *slog.Logger
}

// Keeper watches one machine's clock. Its methods may be called by any goroutine.
type Keeper struct {
	options Options

	mu sync.Mutex // guards what follows
	// floor is the last time seen that the clock has not come to yet; zero: it has.
	floor time.Time
	// refusal is why the clock could not be stepped.
	refusal error
}

// New looks at the clock and steps it where it is behind. The error is of reading
// the last time seen: the keeper works all the same, as on a machine's first day.
func New(o Options) (*Keeper, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	k := &Keeper{options: o}
	seen, err := os.Stat(o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return k, nil
	case err != nil:
		return k, fmt.Errorf("read the last time seen: %w", err)
	}
	last, now := seen.ModTime(), o.Clock.Now()
	if !now.Before(last.Add(-tolerance)) {
		return k, nil
	}
	if k.refusal = o.Set(last); k.refusal == nil {
		o.Logger.Warn("the clock was behind the last time seen and has been stepped to it", "from", now.UTC(), "to", last.UTC())
		return k, nil
	}
	k.floor = last
	o.Logger.Error("the clock is behind the last time seen and cannot be stepped", "now", now.UTC(), "last_seen", last.UTC(), "error", k.refusal)
	return k, nil
}

// Fault says why the clock cannot be right, or is "".
func (k *Keeper) Fault() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.behind() {
		return ""
	}
	return fmt.Sprintf("the clock shows %s, before %s which this node has seen, and cannot be stepped: %v",
		k.options.Clock.Now().UTC().Format(time.RFC3339), k.floor.UTC().Format(time.RFC3339), k.refusal)
}

// behind: the caller holds mu.
func (k *Keeper) behind() bool {
	if !k.floor.IsZero() && !k.options.Clock.Now().Before(k.floor.Add(-tolerance)) {
		k.floor, k.refusal = time.Time{}, nil
	}
	return !k.floor.IsZero()
}

// Run writes the time down until ctx ends. A clock that is behind is not.
func (k *Keeper) Run(ctx context.Context) {
	ticker := k.options.Clock.NewTicker(interval)
	defer ticker.Stop()
	failing := false
	for {
		err := k.record()
		if err != nil && !failing {
			k.options.Logger.Error("write down the time", "error", err)
		}
		failing = err != nil
		select {
		case <-ticker.C():
		case <-ctx.Done():
			return
		}
	}
}

func (k *Keeper) record() error {
	k.mu.Lock()
	behind := k.behind()
	k.mu.Unlock()
	if behind {
		return nil
	}
	now := k.options.Clock.Now()
	err := os.Chtimes(k.options.Path, now, now)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(k.options.Path, nil, 0o600); err != nil {
		return err
	}
	return os.Chtimes(k.options.Path, now, now)
}
