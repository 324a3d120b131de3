//go:build linux

package autonomy

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/site"
)

// account is where a container finds its token and the authorities it trusts.
const account = "root/var/run/secrets/kubernetes.io/serviceaccount"

// callers: pods reach the API by its name in the cluster, and read what they may;
// nobody else on the machine gets a byte, and the node's disk gives no Secret away.
// The answers are the same whether the node is connected or not.
func (l *lab) callers(t *testing.T) {
	web := slices.Sorted(maps.Keys(l.servers(t)))[0]
	poor := l.pauses(t)
	token := func(pid string) string {
		res := l.AsRoot(t, "cat", filepath.Join("/proc", pid, account, "token"))
		if res.Err != nil {
			t.Fatal(res.Stderr)
		}
		return strings.TrimSpace(res.Stdout)
	}
	forged := token(web)
	forged = forged[:len(forged)-8] + "AAAAAAAA"
	const services, secret = "/api/v1/namespaces/default/services", "/api/v1/namespaces/default/secrets/word"
	for _, c := range []struct {
		who, pid, token, path, want, body string
	}{
		{"a pod with a right", web, token(web), services, "200", `"name":"kubernetes"`},
		{"a pod with a right", web, token(web), services + "/kubernetes", "200", "10."},
		{"a pod with a right", web, token(web), services + "?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "200", "k8s.io/initial-events-end"},
		{"a pod with another right", web, token(web), secret, "403", "Forbidden"},
		{"a pod with another right", web, token(web), "/api/v1/namespaces/default/secrets", "403", "Forbidden"},
		{"a pod without rights", poor, token(poor), services, "403", "Forbidden"},
		{"a pod without rights", poor, token(poor), secret, "403", "Forbidden"},
		{"a pod without rights", poor, token(poor), "/api/v1/pods", "403", "Forbidden"},
		{"a forged token", web, forged, services, "401", "Unauthorized"},
		{"a forged token", web, forged, secret, "401", "Unauthorized"},
		{"no token", web, "", services, "401", "Unauthorized"},
		{"no token", web, "", "/api", "401", "Unauthorized"},
	} {
		code, body := l.inPod(t, c.pid, c.token, c.path)
		squeezed := strings.ReplaceAll(body, " ", "")
		if code != c.want || !strings.Contains(squeezed, strings.ReplaceAll(c.body, " ", "")) || (c.want != "200" && strings.Contains(body, word)) {
			t.Errorf("%s: %s: %s %s, want %s with %s", c.who, c.path, code, body, c.want, c.body)
		}
	}
	l.strangers(t)
	l.rawStore(t, token(web), token(poor))
}

// pauses is the process of the pod without rights.
func (l *lab) pauses(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		args, err2 := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && err2 == nil && strings.Contains(string(cgroup), "/"+l.uid+"/"+node+"/pods/") && bytes.HasSuffix(args, []byte("\x00pause\x00")) {
			return filepath.Base(dir)
		}
	}
	t.Fatal("the pod without rights does not run")
	return ""
}

// inPod asks the API as a container does: in its network, by the name and with the
// authorities that it has.
func (l *lab) inPod(t *testing.T, pid, token, path string) (code, body string) {
	t.Helper()
	environ := l.AsRoot(t, "cat", filepath.Join("/proc", pid, "environ"))
	_, after, found := strings.Cut(environ.Stdout, "KUBERNETES_SERVICE_HOST=")
	if !found {
		t.Fatalf("container %s knows no API: %s", pid, environ.Stderr)
	}
	address, _, _ := strings.Cut(after, "\x00")
	header := filepath.Join(l.Work(), "header")
	if err := os.WriteFile(header, []byte("Authorization: Bearer "+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-t", pid, "-n", "curl", "--silent", "--show-error", "--max-time", "20", "--resolve", "kubernetes.default.svc:443:" + address,
		"--cacert", filepath.Join("/proc", pid, account, "ca.crt"), "--write-out", "\n%{http_code}"}
	if token != "" {
		args = append(args, "--header", "@"+header)
	}
	res := l.AsRoot(t, "nsenter", append(args, "https://kubernetes.default.svc"+path)...)
	if res.Err != nil {
		t.Fatalf("%s from container %s: %v %s", path, pid, res.Err, res.Stderr)
	}
	at := strings.LastIndexByte(res.Stdout, '\n')
	return res.Stdout[at+1:], res.Stdout[:at]
}

// strangers: another user of the node's machine gets nothing from the hub, and
// can neither read what the node keeps nor open its socket.
func (l *lab) strangers(t *testing.T) {
	t.Helper()
	asNobody := []string{"--net=/run/netns/" + site.NodeNamespace(l.uid, node), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
	for _, path := range []string{
		"/", "/api", "/apis", "/version", "/healthz", "/metrics", "/openapi/v2", "/api/v1/pods", "/api/v1/secrets", "/api/v1/services?watch=1",
		"/api/v1/namespaces/default/secrets/word", "/api/v1/nodes/" + node, "/apis/discovery.k8s.io/v1/endpointslices",
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			res := l.AsRoot(t, "nsenter", append(asNobody, "curl", "--silent", "--show-error", "--insecure", "--max-time", "20", "--request", method,
				"--write-out", "\n%{http_code}", "https://127.0.0.1:6443"+path)...)
			if res.Err != nil || !strings.HasSuffix(res.Stdout, "\n401") || strings.Contains(res.Stdout, "items") {
				t.Errorf("%s %s as another user: %v %s%s", method, path, res.Err, res.Stdout, res.Stderr)
			}
		}
	}
	// find fails at the first directory it may not enter, which is what is wanted.
	if res := l.AsRoot(t, "nsenter", append(asNobody, "find", l.dir, "-type", "f", "-readable")...); res.Err == nil || res.Stdout != "" {
		t.Errorf("another user reads %s of the node (%v)", res.Stdout, res.Err)
	}
	if res := l.AsRoot(t, "nsenter", append(asNobody, "curl", "--silent", "--unix-socket", filepath.Join(l.dir, "run", "node.sock"), "http://node/status")...); res.Err == nil {
		t.Errorf("another user opens the node's socket: %s", res.Stdout)
	}
}

// rawStore: neither the Secret nor a token is to be seen in the replica's files.
func (l *lab) rawStore(t *testing.T, tokens ...string) {
	t.Helper()
	secrets := map[string]string{"the Secret": word, "the Secret in base64": base64.StdEncoding.EncodeToString([]byte(word))}
	for i, token := range tokens {
		secrets[fmt.Sprintf("token %d", i)] = token
	}
	files, err := filepath.Glob(filepath.Join(l.dir, "data", "hub", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the replica's files: %v %v", files, err)
	}
	sawPod := false
	for _, file := range files {
		raw := l.AsRoot(t, "cat", file)
		if raw.Err != nil {
			t.Fatal(raw.Stderr)
		}
		sawPod = sawPod || strings.Contains(raw.Stdout, "netexec")
		for what, secret := range secrets {
			if strings.Contains(raw.Stdout, secret) {
				t.Errorf("%s lies open in %s", what, file)
			}
		}
	}
	if !sawPod {
		t.Errorf("no pod in %v: this does not look where the replica is", files)
	}
}
