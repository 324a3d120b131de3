//go:build linux

package oneapply

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// tunnelled shows that every operation of kubectl works for every node although
// nothing on the cloud side can dial one.
func tunnelled(t *testing.T, r *rig.Rig, _ string) {
	refused := dialsFromCloud(t, r)
	for node, pool := range quickstartNodes {
		t.Run(node, func(t *testing.T) {
			pod, ip := podOn(t, r, node)
			refused(t, pool, nodeAddress(t, r, node)+":10250")
			refused(t, pool, ip+":8080")
			if out := r.Kubectl(t, quickstart, "logs", pod); strings.TrimSpace(out) == "" {
				t.Error("logs: nothing")
			}
			contains(t, r.Kubectl(t, quickstart, "exec", pod, "--", "env"), "SITE="+pool+"\n")
			copies(t, r, pod)
			attaches(t, r, pod)
			forwards(t, r, pod)
			if out := r.Kubectl(t, quickstart, "get", "--raw", "/api/v1/namespaces/default/pods/"+pod+":8080/proxy/hostname"); strings.TrimSpace(out) != pod {
				t.Errorf("pods proxy: %q, want %q", out, pod)
			}
		})
	}
	if out := r.Kubectl(t, quickstart, "get", "--raw", "/api/v1/namespaces/default/services/web:80/proxy/hostname"); !strings.HasPrefix(out, "web-") {
		t.Errorf("services proxy: %q", out)
	}
	webhook(t, r)
}

// copies sends 3 MiB there and back.
func copies(t *testing.T, r *rig.Rig, pod string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "blob")
	content := bytes.Repeat([]byte("edge\x00\xff"), 512<<10)
	if err := os.WriteFile(src, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r.Kubectl(t, quickstart, "cp", src, "default/"+pod+":/tmp/blob")
	r.Kubectl(t, quickstart, "cp", "default/"+pod+":/tmp/blob", src+".back")
	back, err := os.ReadFile(src + ".back")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back, content) {
		t.Errorf("cp: %d bytes came back, want the same %d", len(back), len(content))
	}
}

// attaches reads what a container prints while attached to it.
func attaches(t *testing.T, r *rig.Rig, pod string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Edge, "kubectl", "-c", quickstart, "attach", pod)
	cmd.Env = append(os.Environ(), "EDGE_STATE_DIR="+r.StateDir)
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in // netexec logs to its standard error
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			if strings.Contains(s.Text(), "/echo") {
				line <- s.Text()
				_, _ = io.Copy(io.Discard, out) // until the writer is closed
				return
			}
		}
		line <- ""
		_, _ = io.Copy(io.Discard, out) // until the writer is closed
	}()
	defer in.Close()
	// netexec logs each request, so there is something to see.
	var got string
	for got == "" && ctx.Err() == nil {
		r.TryEdge(t, "kubectl", "-c", quickstart, "get", "--raw", "/api/v1/namespaces/default/pods/"+pod+":8080/proxy/echo?msg=hello")
		select {
		case got = <-line:
		case <-time.After(500 * time.Millisecond):
		}
	}
	cancel()
	_ = cmd.Wait() // it was interrupted
	if got == "" {
		t.Error("attach: nothing was seen of what the container prints")
	}
}

var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+)`)

// forwards fetches a page through kubectl port-forward.
func forwards(t *testing.T, r *rig.Rig, pod string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Edge, "kubectl", "-c", quickstart, "port-forward", "pod/"+pod, ":8080")
	cmd.Env = append(os.Environ(), "EDGE_STATE_DIR="+r.StateDir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was interrupted
	}()
	s := bufio.NewScanner(out)
	for s.Scan() {
		m := forwarding.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+m[1]+"/hostname", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("port-forward: %v", err)
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || strings.TrimSpace(string(body)) != pod {
			t.Errorf("port-forward: %q, %v; want %q", body, err, pod)
		}
		return
	}
	t.Error("port-forward: kubectl did not say where it listens")
}

// podNetwork shows what a pod reaches: pods of its pool on another node,
// Services, names, and the API, which is reached only through the tunnel.
func podNetwork(t *testing.T, r *rig.Rig) {
	one, _ := podOn(t, r, "berlin-1")
	two, ip := podOn(t, r, "berlin-2")
	connect := func(pod, target string) error {
		res := r.TryEdge(t, "kubectl", "-c", quickstart, "exec", pod, "--", "/agnhost", "connect", "--timeout=5s", target)
		if res.Err != nil {
			return fmt.Errorf("%s to %s: %w: %s%s", pod, target, res.Err, res.Stdout, res.Stderr)
		}
		return nil
	}
	for _, target := range []string{
		ip + ":8080", // the other node of the pool
		"web:80",     // a Service by its short name
		"web.default.svc.cluster.local:80",
		"kubernetes.default:443", // the API
	} {
		if err := connect(one, target); err != nil {
			t.Error(err)
		}
	}
	if err := connect(two, "kubernetes.default:443"); err != nil {
		t.Error(err)
	}

	// With its site's link cut the API must be gone for tokyo-1, which shows that
	// there is no other way to it.
	res := r.AsRoot(t, r.Edge, "lab", "cut", quickstart, "tokyo")
	if res.Err != nil {
		t.Fatalf("lab cut: %s%s", res.Stdout, res.Stderr)
	}
	defer func() {
		if res := r.AsRoot(t, r.Edge, "lab", "restore", quickstart, "tokyo"); res.Err != nil {
			t.Fatalf("lab restore: %s%s", res.Stdout, res.Stderr)
		}
		rig.Eventually(t, 60*time.Second, "the tunnel of tokyo-1 is back", func() error {
			pod, _ := podOn(t, r, "tokyo-1")
			return connect(pod, "kubernetes.default:443")
		})
	}()
	// The operator's own way in is the tunnel too, so what the node can reach is
	// asked from inside its network namespace.
	uid := strings.TrimSpace(r.Kubectl(t, quickstart, "get", "configmap", "-n", "edge-system", "cluster", "-o", "jsonpath={.data.id}"))
	uid = uid[strings.LastIndexByte(uid, '-')+1:]
	service := strings.TrimSpace(r.Kubectl(t, quickstart, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"))
	inside := r.AsRoot(t, "nsenter", "--net=/run/netns/edge-"+uid+"-n-tokyo-1", "curl", "-sk", "--max-time", "3", "https://"+service+"/healthz")
	if inside.Err == nil {
		t.Errorf("the API answers a node that is cut off: %s", inside.Stdout)
	}
}

// webhook shows that the apiserver calls an admission webhook served by a pod of
// an edge node: its dials go through the tunnel by pod address.
func webhook(t *testing.T, r *rig.Rig) {
	t.Helper()
	const ns = "edge-webhook"
	manifest := webhookManifest(t, ns)
	path := filepath.Join(t.TempDir(), "webhook.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Kubectl(t, quickstart, "apply", "-f", path)
	defer r.Kubectl(t, quickstart, "delete", "-f", path, "--wait=false")
	r.Kubectl(t, quickstart, "wait", "-n", ns, "pod/webhook", "--for=condition=Ready", "--timeout=60s")
	rig.Eventually(t, 30*time.Second, "the webhook is called", func() error {
		res := r.TryEdge(t, "kubectl", "-c", quickstart, "create", "configmap", "probe", "-n", ns, "--from-literal=a=b", "--dry-run=server")
		if res.Err == nil {
			return fmt.Errorf("the request was admitted")
		}
		if !strings.Contains(res.Stderr, "this webhook denies all requests") {
			return fmt.Errorf("refused, but not by the webhook: %s", res.Stderr)
		}
		return nil
	})
}

// nodeTold is what a node says of itself.
type nodeTold struct {
	DaemonPID int
	Live      struct {
		Tunnel struct {
			Transport, Wanted, Trouble string
			Sessions                   map[string]int
		}
	}
}

func askNode(t *testing.T, r *rig.Rig, node string) (told nodeTold, err error) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(r.StateDir, "clusters", "*", "nodes", node))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("directories of node %s: %v %v", node, dirs, err)
	}
	res := r.TryEdge(t, "node", "status", "--dir", dirs[0], "-o", "json")
	if res.Err != nil {
		return told, fmt.Errorf("edge node status: %w: %s", res.Err, res.Stderr)
	}
	return told, json.Unmarshal([]byte(res.Stdout), &told)
}

// carriedBy waits until every node says that its pool wants a transport and that its
// session is over what comes of that.
func carriedBy(t *testing.T, r *rig.Rig, wanted, transport string) {
	t.Helper()
	for node := range quickstartNodes {
		rig.Eventually(t, 20*time.Second, "the session of "+node+" is over "+transport, func() error {
			told, err := askNode(t, r, node)
			if err != nil {
				return err
			}
			if got := told.Live.Tunnel; got.Transport != transport || got.Wanted != wanted || got.Trouble != "" {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
	}
}

// startsOver kills a node's daemon: the next one begins with the transport of its
// pool, and tries no other before it has read that.
func startsOver(t *testing.T, r *rig.Rig, node, transport string) {
	t.Helper()
	before, err := askNode(t, r, node)
	if err != nil {
		t.Fatal(err)
	}
	if res := r.AsRoot(t, "kill", "-KILL", fmt.Sprint(before.DaemonPID)); res.Err != nil {
		t.Fatalf("kill the daemon of %s: %s", node, res.Stderr)
	}
	rig.Eventually(t, 30*time.Second, "a new daemon of "+node+" has a session", func() error {
		told, err := askNode(t, r, node)
		if err != nil {
			return err
		}
		got := told.Live.Tunnel
		if told.DaemonPID == before.DaemonPID || len(got.Sessions) == 0 {
			return fmt.Errorf("daemon %d: %+v", told.DaemonPID, got)
		}
		if len(got.Sessions) != 1 || got.Sessions[transport] == 0 {
			t.Errorf("sessions of the new daemon: %v, want %s only", got.Sessions, transport)
		}
		return nil
	})
}
