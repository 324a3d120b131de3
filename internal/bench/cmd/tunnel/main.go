//go:build linux

// Command tunnel measures the tunnel beside its peers, on emulated lines:
//
//	tunnel [-quick] [-full] [-only bulk,...] [-out bench/tunnel.json] [-konnectivity-server f -konnectivity-agent f] ...
//
// What is measured is the product's own path: a client of the gateway's egress
// socket, the gateway, the line, the agent and a target at the node, each its
// own process in its own network namespace. A peer gets the same client and
// target. All subjects of a measurement run with the same seed next to each
// other, so that what the machine does besides hits all of them.
//
// It needs root. Everything lives in namespaces without a name and in one
// temporary directory; nothing is left behind but, after a kill, the latter.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

type options struct {
	quick    bool
	full     bool
	seeds    int
	parallel int
	only     string
	line     string
	subject  string
	out      string

	konnServer, konnAgent string
	chisel                string
	frps, frpc            string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleCommand {
		os.Exit(roleMain(os.Args[2:]))
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "two seeds and shorter transfers: a look, not a result")
	flag.BoolVar(&o.full, "full", false, "10,000 nodes in place of 1,000 where nodes are many")
	flag.IntVar(&o.seeds, "seeds", 5, "repetitions of each measurement, each with losses of its own")
	flag.IntVar(&o.parallel, "parallel", 2*runtime.NumCPU(), "how many subjects are measured at once, each on a line of its own")
	flag.StringVar(&o.only, "only", "", "measure only these, separated by commas: "+strings.Join(partNames(), ", "))
	flag.StringVar(&o.line, "line", "", "measure only lines whose name contains this")
	flag.StringVar(&o.subject, "subject", "", "measure only subjects whose name contains this")
	flag.StringVar(&o.out, "out", "", "`file` for the results; of a whole run bench/tunnel.json if not given")
	flag.StringVar(&o.konnServer, "konnectivity-server", "", "konnectivity's server `program` to compare with; none if empty")
	flag.StringVar(&o.konnAgent, "konnectivity-agent", "", "its agent `program`")
	flag.StringVar(&o.chisel, "chisel", "", "chisel `program` to compare with; none if empty")
	flag.StringVar(&o.frps, "frps", "", "frp's server `program` to compare with; none if empty")
	flag.StringVar(&o.frpc, "frpc", "", "its client `program`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// part is a family of rows, in a file of its own.
type part struct {
	name string
	run  func(context.Context, *world) ([]bench.Row, error)
}

func parts() []part {
	return []part{
		{"newstream", measureNewStream},
		{"bulk", measureBulk},
		{"stalled", measureStalled},
		{"lan", measureLAN},
		{"crowd", measureCrowd},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

func run(ctx context.Context, o options) (err error) {
	var only []string
	if o.only != "" {
		only = strings.Split(o.only, ",")
		for _, name := range only {
			if !slices.Contains(partNames(), name) {
				return fmt.Errorf("there is no measurement %q: use %s", name, strings.Join(partNames(), ", "))
			}
		}
	}
	if o.quick {
		o.seeds = min(o.seeds, 2)
	}
	if err := netlab.Supported(); err != nil {
		return fmt.Errorf("the lines cannot be emulated here: %w", err)
	}
	if o.out == "" && !o.quick && only == nil && o.line == "" && o.subject == "" {
		o.out = "bench/tunnel.json"
	}
	for _, p := range []*string{&o.out, &o.konnServer, &o.konnAgent, &o.chisel, &o.frps, &o.frpc} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	w, err := openWorld(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()

	start := time.Now()
	rows := []bench.Row{bench.LoadRow()}
	for _, p := range parts() {
		if only != nil && !slices.Contains(only, p.name) {
			continue
		}
		w.say("== %s", p.name)
		began := time.Now()
		got, err := p.run(ctx, w)
		if err != nil {
			return fmt.Errorf("measure %s: %w", p.name, err)
		}
		rows = append(rows, got...)
		rows = append(rows, bench.Row{Name: bench.PhasePrefix + "the benchmark itself: " + p.name, Unit: "s", Ours: time.Since(began).Seconds()})
	}
	fmt.Print("\n", bench.Table(rows), bench.Misses(rows))
	w.say("took %s with %d seeds", time.Since(start).Round(time.Second), o.seeds)
	if o.out == "" {
		w.say("this was the quick form or a part of the benchmark, with no file for it with -out: nothing is written")
		return nil
	}
	return bench.Write(o.out, rows)
}
