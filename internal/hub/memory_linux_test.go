package hub_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/hub/hubload"
)

func TestMain(m *testing.M) {
	hubload.Main()
	os.Exit(m.Run())
}

// The node that is measured: a full one.
const (
	memoryPods     = 110
	memoryServices = 500
	// memoryAim is what a hub may have resident with that, in KiB, beside the
	// pages of its program: those are shared with all that run it, and this
	// program is a test.
	memoryAim = 40_000_000 / 1024
	// memoryPatience bounds the wait for all of the node's reflectors.
	memoryPatience = 100 * time.Second
)

// TestResidentMemory measures a hub with a full node's replica and a full node's
// clients: kubelet with its watches of each Secret and ConfigMap, kube-proxy and
// CoreDNS.
func TestResidentMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real control plane")
	}
	ctx := t.Context()
	server, err := apitest.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := server.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	admin, err := server.Admin()
	if err != nil {
		t.Fatal(err)
	}
	if err := controllers.Install(ctx, admin, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	if err := hubload.FillNode(ctx, kube, "n1", memoryPods); err != nil {
		t.Fatal(err)
	}
	if err := hubload.FillServices(ctx, kube, 0, memoryServices, 1); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	node, err := hubload.NewNode(dir, "n1", server.Config)
	if err != nil {
		t.Fatal(err)
	}
	running, err := node.Process(filepath.Join(dir, "data"), strings.TrimPrefix(server.URL, "https://")).Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := running.Stop(); err != nil {
			t.Error(err)
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, memoryPatience)
	defer cancel()
	stop, err := hubload.Follow(waiting, hubload.Followed{
		Node: "n1", Pods: memoryPods,
		Config: func(c hubload.Component) (*rest.Config, error) { return node.Config(c, running.Address) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()

	memory, err := hubload.MemoryOf(running.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resident with %d pods and %d services: %d KiB, and %d KiB of the program", memoryPods, memoryServices, memory.Own, memory.Program)
	if memory.Own > memoryAim {
		t.Errorf("%d KiB are resident, more than %d", memory.Own, memoryAim)
	}
}
