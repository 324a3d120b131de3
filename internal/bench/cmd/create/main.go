//go:build linux

// Command create measures the first promise: how long it takes to make a
// cluster, to join a node and to bring the quickstart up, how fast the plugin
// answers, and what all of it weighs. Where there is a peer, both alternate.
//
//	create -edge bin/edge -terraform $(scripts/terraform.sh) [-rounds 5] [-only cluster,join,...] [-out bench/create.json]
//
// It works in one directory of its own below the system's temporary directory,
// holds a lock on it, and removes everything it made, also after an interrupt;
// what a killed run left is removed by the next one. It never touches the user's
// own state directory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
)

// roundTimeout bounds one create, apply or destroy: ten times what a slow
// machine takes.
const roundTimeout = 5 * time.Minute

type options struct {
	rounds    int
	only      string
	out       string
	edge      string
	plugin    string
	terraform string
	examples  string
	kwokctl   string
	kwok      string
	peer      string // a Terraform provider
	peerName  string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == engineCommand {
		os.Exit(engineMain(os.Args[2:]))
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each measurement")
	flag.StringVar(&o.only, "only", "", "measure only these, separated by commas: "+strings.Join(partNames(), ", "))
	flag.StringVar(&o.out, "out", "bench/create.json", "`file` for the results")
	flag.StringVar(&o.edge, "edge", "bin/edge", "the built edge `program`")
	flag.StringVar(&o.plugin, "plugin", "bin/terraform-provider-edge", "the built `plugin`")
	flag.StringVar(&o.terraform, "terraform", "terraform", "terraform or tofu")
	flag.StringVar(&o.examples, "examples", "examples/quickstart", "`directory` of the quickstart")
	flag.StringVar(&o.kwokctl, "kwokctl", "", "kwokctl `program` to compare with; none if empty")
	flag.StringVar(&o.kwok, "kwok", "", "kwok controller `program`")
	flag.StringVar(&o.peer, "peer-plugin", "", "a Terraform provider `program` to compare with; none if empty")
	flag.StringVar(&o.peerName, "peer-plugin-name", "", "its name and version")
	flag.Parse()
	ctrllog.SetLogger(logr.Discard()) // its clients complain without one
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// part is one measurement.
type part struct {
	name string
	run  func(context.Context, *world) ([]bench.Row, error)
}

func parts() []part {
	return []part{
		{"plugin", measurePlugin},
		{"cluster", measureClusters},
		{"join", measureJoin},
		{"quickstart", measureQuickstart},
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
	for _, p := range []*string{&o.edge, &o.plugin, &o.examples, &o.out} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	w, err := openWorld(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(ctx)) }()

	rows := []bench.Row{bench.LoadRow()}
	for _, p := range parts() {
		if only != nil && !slices.Contains(only, p.name) {
			continue
		}
		w.say("== %s", p.name)
		got, err := p.run(ctx, w)
		if err != nil {
			return fmt.Errorf("measure %s: %w", p.name, err)
		}
		rows = append(rows, got...)
	}
	fmt.Print("\n", bench.Table(rows))
	if only != nil {
		w.say("a part of the benchmark was asked for: %s is left as it was", filepath.Base(o.out))
		return nil
	}
	return bench.Write(o.out, rows)
}
