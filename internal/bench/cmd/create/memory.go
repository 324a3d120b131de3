//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
)

// usage is what a process holds in memory, in bytes: resident, and resident
// with each shared page divided among its users.
type usage struct{ rss, pss int64 }

// memory is the usage of processes by name; those of one name are added up.
type memory map[string]usage

func (m memory) add(name string, pid int) error {
	u, err := usageOf(pid)
	if err != nil {
		return fmt.Errorf("memory of %s: %w", name, err)
	}
	sum := m[name]
	m[name] = usage{sum.rss + u.rss, sum.pss + u.pss}
	return nil
}

func (m memory) total() usage {
	var t usage
	for _, u := range m {
		t.rss += u.rss
		t.pss += u.pss
	}
	return t
}

func usageOf(pid int) (usage, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return usage{}, err
	}
	return parseRollup(raw)
}

// parseRollup reads proc(5)'s smaps_rollup.
func parseRollup(raw []byte) (usage, error) {
	var u usage
	for line := range bytes.Lines(raw) {
		f := strings.Fields(string(line))
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseInt(f[1], 10, 50)
		if err != nil {
			return usage{}, fmt.Errorf("line %q: %w", bytes.TrimSpace(line), err)
		}
		switch f[0] {
		case "Rss:":
			u.rss = kb << 10
		case "Pss:":
			u.pss = kb << 10
		}
	}
	if u.rss == 0 {
		return u, fmt.Errorf("no resident memory in it")
	}
	return u, nil
}

func mib(b int64) float64 { return float64(b) / (1 << 20) }

// clusterMemory reads the control plane's processes once they have settled.
func (w *world) clusterMemory(ctx context.Context, name string) (memory, error) {
	dir, err := w.clusterDir(name)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	return scanProcesses(func(cmdline, cgroup string) bool {
		return strings.Contains(cmdline, dir) && !strings.Contains(cgroup, "/edge/")
	})
}

// nodeMemory reads what belongs to one node and not to its pods.
func nodeMemory(clusterDir, node string) (memory, error) {
	base := filepath.Base(clusterDir)
	uid := base[strings.LastIndexByte(base, '-')+1:]
	return scanProcesses(func(_, cgroup string) bool {
		return strings.Contains(cgroup, "/edge/"+uid+"/"+node+"/host")
	})
}

// kwokMemory reads the peer's processes once they have settled.
func (w *world) kwokMemory(ctx context.Context) (memory, error) {
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	pids, err := w.kwokProcesses()
	if err != nil {
		return nil, err
	}
	m := memory{}
	for name, pid := range pids {
		if err := m.add(name, pid); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// scanProcesses adds up the processes that a test of command line (with spaces)
// and cgroups accepts.
func scanProcesses(accept func(cmdline, cgroup string) bool) (memory, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	m := memory{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that has just ended is none of those that are measured.
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		cgroup, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.Trim(string(cmdline), "\x00"), "\x00")
		if !accept(strings.Join(args, " "), string(cgroup)) {
			continue
		}
		if err := m.add(processName(args), pid); err != nil {
			return nil, err
		}
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("there is no process to measure")
	}
	return m, nil
}

// processName is how a process is called in the results.
func processName(args []string) string {
	name := filepath.Base(args[0])
	if name != "edge" || len(args) < 2 {
		return name
	}
	switch args[1] {
	case "supervise":
		return "edge supervise (the daemon's parent)"
	case "control-plane":
		return "edge control-plane run (gateway, controllers)"
	case "node":
		return "edge node run (agent, hub, pod network)"
	}
	return name + " " + args[1]
}

// memoryRows returns one row a process and two of the whole. peer may be empty.
func memoryRows(what string, ours memory, peerName string, peer memory) []bench.Row {
	var rows []bench.Row
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		r := bench.Row{Name: "memory of " + what + ": " + name + ", resident", Unit: "MiB", Ours: mib(ours[name].rss)}
		if p, ok := peer[name]; ok {
			r = r.With(peerName, mib(p.rss))
		}
		rows = append(rows, r)
	}
	sum := bench.Row{Name: "memory of " + what + ": all, resident", Unit: "MiB", Ours: mib(ours.total().rss)}
	shared := bench.Row{Name: "memory of " + what + ": all, shared pages counted once", Unit: "MiB", Ours: mib(ours.total().pss)}
	if len(peer) > 0 {
		sum, shared = sum.With(peerName, mib(peer.total().rss)), shared.With(peerName, mib(peer.total().pss))
	}
	return append(rows, sum, shared)
}
