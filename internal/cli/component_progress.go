package cli

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

// plainEvery is how often a component says how far it is where there is no
// terminal: often enough to see life, seldom enough for a CI log.
const plainEvery = 20 * time.Second

// componentReport shows the progress of components: bars on a terminal, lines
// elsewhere. Its methods are called from one goroutine at a time.
type componentReport struct {
	w    io.Writer
	now  func() time.Time
	bars *mpb.Progress // nil: lines
	rows map[string]*componentRow
}

// componentRow is what is shown of one component.
type componentRow struct {
	bar   *mpb.Bar
	total int64     // of the bar
	said  time.Time // when a line was last printed
}

func newComponentReport(w io.Writer, terminal bool, now func() time.Time) *componentReport {
	r := &componentReport{w: w, now: now, rows: map[string]*componentRow{}}
	if f, ok := w.(*os.File); ok && terminal {
		// A terminal that does not know its size shows no bars.
		if width, _, err := term.GetSize(int(f.Fd())); err != nil || width == 0 {
			terminal = false
		}
	}
	if terminal {
		r.bars = mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithWidth(40), mpb.WithRefreshRate(150*time.Millisecond))
	}
	return r
}

// event takes each event of a Store.
func (r *componentReport) event(e component.Event) {
	name := e.Component + " " + e.Version
	switch e.Kind {
	case component.Planned:
		r.line(fmt.Sprintf("%s: %s. This takes up to %s on this machine and happens once.", strings.Join(e.Components, ", "), e.Message, roughly(e.Estimate)))
	case component.Notice:
		r.line(e.Message)
	case component.Waiting:
		r.line(name + ": " + e.Message + ", waiting for it")
	case component.Started:
		if r.bars == nil {
			r.line(name + ": building")
		}
		r.row(name, e)
	case component.Progress:
		r.progress(name, e)
	case component.Installed:
		if row := r.rows[name]; row != nil && row.bar != nil {
			row.bar.SetCurrent(row.total)
			row.bar.SetTotal(-1, true)
		} else {
			r.line(fmt.Sprintf("%s: ready after %s", name, e.Elapsed.Round(100*time.Millisecond)))
		}
	}
}

func (r *componentReport) progress(name string, e component.Event) {
	row := r.row(name, e)
	if r.bars == nil {
		if now := r.now(); now.Sub(row.said) >= plainEvery && e.Total > 0 {
			row.said = now
			r.line(fmt.Sprintf("%s: %s", name, amount(e.Done, e.Total, e.Unit)))
		}
		return
	}
	// One below the total, for after the last package comes the linker.
	row.total = e.Total + 1
	row.bar.SetTotal(row.total, false)
	row.bar.SetCurrent(e.Done)
}

func (r *componentReport) row(name string, e component.Event) *componentRow {
	row := r.rows[name]
	if row == nil {
		row = &componentRow{total: 1, said: r.now()}
		r.rows[name] = row
		if r.bars != nil {
			unit := e.Unit
			row.bar = r.bars.AddBar(0, // not known yet, so that it does not end by itself

				mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
				mpb.AppendDecorators(
					decor.OnComplete(decor.Any(func(s decor.Statistics) string { return " " + amount(s.Current, s.Total-1, unit) }), " ready"),
					decor.Elapsed(decor.ET_STYLE_MMSS, decor.WC{W: 8}),
				),
			)
		}
	}
	return row
}

// close leaves the bars as they are. It must be called before anything else is
// printed.
func (r *componentReport) close() {
	if r.bars == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(r.rows)) {
		if bar := r.rows[name].bar; bar != nil && !bar.Completed() {
			bar.Abort(false)
		}
	}
	r.bars.Wait()
}

func (r *componentReport) line(text string) {
	w := r.w
	if r.bars != nil {
		w = r.bars // prints above the bars
	}
	fmt.Fprintln(w, text)
}

func amount(done, total int64, unit string) string {
	switch {
	case total <= 0:
		return "starting"
	case unit == component.Bytes:
		return fmt.Sprintf("%.0f of %.0f MB", float64(done)/1e6, float64(total)/1e6)
	case done >= total:
		return "linking"
	}
	return fmt.Sprintf("%d of %d %s", done, total, component.Packages)
}

func roughly(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%d seconds", max(1, int(d.Seconds())))
	}
	m := int((d + 30*time.Second) / time.Minute)
	if m == 1 {
		return "1 minute"
	}
	return fmt.Sprintf("%d minutes", m)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
