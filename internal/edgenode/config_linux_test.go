//go:build linux

package edgenode

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata")

func testSpec() *Spec {
	programs := map[string]string{}
	for _, p := range Programs() {
		programs[p] = "/cache/" + p + "/bin/" + p
	}
	return &Spec{
		ClusterID: "local/lab-0a1b2c3d", ClusterName: "lab", ClusterUID: "0a1b2c3d", Name: "b-1", Pool: "berlin",
		KubernetesVersion: "1.36.3", Programs: programs, PauseImage: "edgewright.dev/pause:1.0.0",
		Local: &LocalPlacement{GatewayPort: 7443, Address: netip.MustParseAddr("192.168.1.11"), Cloud: netip.MustParseAddr("198.18.0.13")},
	}
}

func testInput() *configInput {
	return &configInput{
		Spec: testSpec(), Dir: "/state/clusters/lab-0a1b2c3d/nodes/b-1",
		Cluster:   joined{DNSDomain: "cluster.local", PodCIDRs: []string{"10.64.0.0/16"}, ServiceCIDRs: []string{"10.65.0.0/20"}},
		CgroupV1:  true,
		Resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")},
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func TestConfigurations(t *testing.T) {
	in := testInput()
	kubelet, err := kubeletConfig(in)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := kubeProxyConfig(in)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "kubelet.yaml", string(kubelet))
	golden(t, "kube-proxy.yaml", string(proxy))
	golden(t, "containerd.toml", containerdConfig(in.Spec, true))
	golden(t, "Corefile", corefile(in))

	in.CgroupV1 = false
	if kubelet, err = kubeletConfig(in); err != nil || !strings.Contains(string(kubelet), "failCgroupV1: true") {
		t.Errorf("on cgroup v2 kubelet is told otherwise (%v)", err)
	}
	in.Resolvers = nil
	if text := corefile(in); strings.Contains(text, "forward") {
		t.Errorf("without name servers CoreDNS forwards:\n%s", text)
	}
}

func TestParseResolvers(t *testing.T) {
	got, err := parseResolvers(strings.NewReader("# x\nsearch example.org\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver junk\nnameserver 169.254.20.10\nnameserver 2001:db8::1\nnameserver\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"192.0.2.1", "2001:db8::1"}, addrStrings(got)); d != "" {
		t.Error(d)
	}
	if got := podResolv(nil); got != "nameserver 169.254.20.10\n" {
		t.Errorf("pods of a node without name servers get %q", got)
	}
	four := make([]netip.Addr, 4)
	for i := range four {
		four[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	}
	if got := podResolv(four); strings.Count(got, "nameserver") != 3 {
		t.Errorf("pods get %q, and libc takes three", got)
	}
}

func FuzzParseResolvers(f *testing.F) {
	f.Add("nameserver 192.0.2.1\n")
	f.Add("nameserver fe80::1%eth0\nnameserver ::\n")
	f.Fuzz(func(t *testing.T, text string) {
		found, err := parseResolvers(strings.NewReader(text))
		if err != nil {
			return
		}
		if len(found) > maxResolvers {
			t.Fatalf("%d name servers, CoreDNS takes %d", len(found), maxResolvers)
		}
		for _, a := range found {
			// They go into the Corefile word by word.
			if strings.ContainsAny(a.String(), " \n{}") {
				t.Fatalf("name server %q", a)
			}
		}
	})
}
