//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// kwokName is how the peer is called in the results.
const kwokName = "kwokctl 0.8.0"

const kwokCluster = "bench"

func (w *world) kwokDir() string { return filepath.Join(w.dir, "kwok") }

func (w *world) kwokEnvironment() []string {
	return w.environment("KWOK_WORKDIR="+w.kwokDir(), "KWOK_KUBE_VERSION=v"+version, "KWOK_KUBECTL_BINARY="+w.programs["kubectl"])
}

// kwokCreate makes a cluster with the same upstream programs. All of them are
// given as files, which kwokctl links to and so downloads nothing.
func (w *world) kwokCreate(ctx context.Context) (time.Duration, error) {
	if err := os.MkdirAll(w.kwokDir(), 0o700); err != nil {
		return 0, err
	}
	_, said, took, err := w.command(ctx, w.dir, w.kwokEnvironment(), w.kwokctl,
		"create", "cluster", "--name", kwokCluster, "--runtime", "binary", "--wait", "2m",
		"--kubeconfig", filepath.Join(w.kwokDir(), "kubeconfig"),
		"--kube-apiserver-binary", w.programs["kube-apiserver"],
		"--kube-controller-manager-binary", w.programs["kube-controller-manager"],
		"--kube-scheduler-binary", w.programs["kube-scheduler"],
		"--etcd-binary", w.programs["etcd"],
		"--kwok-controller-binary", w.kwok)
	if err != nil {
		return 0, err
	}
	// It ends with 0 also where the wait ran out.
	if !strings.Contains(said, "Cluster is ready") {
		return 0, fmt.Errorf("kwokctl does not say that its cluster is ready:\n%s", tail(said))
	}
	return took, nil
}

// kwokDelete removes the peer's cluster, if there is one.
func (w *world) kwokDelete(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(w.kwokDir(), "clusters", kwokCluster)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if w.kwokctl == "" {
		return fmt.Errorf("%s holds a cluster of kwokctl and no kwokctl is named", w.kwokDir())
	}
	_, _, _, err := w.command(ctx, w.dir, w.kwokEnvironment(), w.kwokctl,
		"delete", "cluster", "--name", kwokCluster, "--kubeconfig", filepath.Join(w.kwokDir(), "kubeconfig"))
	if err != nil {
		return err
	}
	return os.RemoveAll(w.kwokDir())
}

// kwokProcesses returns the peer's processes by name.
func (w *world) kwokProcesses() (map[string]int, error) {
	files, err := filepath.Glob(filepath.Join(w.kwokDir(), "clusters", kwokCluster, "pids", "*.pid"))
	if err != nil {
		return nil, err
	}
	pids := map[string]int{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		pids[strings.TrimSuffix(filepath.Base(f), ".pid")] = pid
	}
	return pids, nil
}
