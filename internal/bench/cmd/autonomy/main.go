//go:build linux

// Command autonomy measures what the node's hub costs and gives:
//
//	autonomy [-rounds 3] [-reboots 5] [-only memory,...] [-out bench/autonomy.json] [-yurthub f] [-edge bin/edge]
//
// The hub runs with the agent in a process of its own, as in the node's daemon,
// behind a real gateway and a real apiserver, and client-go's reflectors follow
// through it what a node's components follow. A peer gets the same reflectors and
// the same apiserver, or the reflectors talk to the apiserver themselves.
//
// The reboots are of a real node of a real cluster, made as the tests' are; beside
// it this very program is the daemon of the same node, one without a hub.
//
// Traffic and day need root and TUN: their nodes are network namespaces without a
// name; reboots need root. Everything else lives in one temporary directory; nothing
// is left behind but, after a kill, that, and the cluster that is rebooted in, which
// the next run removes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/hub/hubload"
)

type options struct {
	rounds  int
	window  time.Duration
	only    string
	out     string
	yurthub string
	edge    string
	reboots int
}

func main() {
	hubload.Main()
	bareMain()
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "repetitions of each measurement")
	flag.IntVar(&o.reboots, "reboots", 5, "rounds of reboots")
	flag.DurationVar(&o.window, "window", 10*time.Minute, "how long the bytes of idle nodes are counted")
	flag.StringVar(&o.only, "only", "", "measure only these, separated by commas: "+strings.Join(partNames(), ", "))
	flag.StringVar(&o.out, "out", "", "`file` for the results; of a whole run bench/autonomy.json if not given")
	flag.StringVar(&o.yurthub, "yurthub", "", "OpenYurt's yurthub `program` to compare with; none if empty")
	flag.StringVar(&o.edge, "edge", "bin/edge", "edge `program` that nodes are rebooted with")
	flag.Parse()
	// What clients say of a watch that ended is no result.
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
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
		{"memory", measureMemory},
		{"traffic", measureTraffic},
		{"reboot", measureReboot},
		{"day", measureDay},
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
	if o.out == "" && only == nil {
		o.out = "bench/autonomy.json"
	}
	dir, err := os.MkdirTemp("", "edge-bench-autonomy-")
	if err != nil {
		return err
	}
	w := &world{options: o, dir: dir}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

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
	w.say("took %s with %d rounds", time.Since(start).Round(time.Second), o.rounds)
	if o.out == "" {
		w.say("a part of the benchmark was asked for, and no file for it with -out: nothing is written")
		return nil
	}
	return bench.Write(o.out, rows)
}
