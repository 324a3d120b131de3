//go:build linux

package controlplane

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/*.args anew")

func testSpec() *Spec {
	return &Spec{
		ClusterID: "local/c-1f2e3d4c", UID: "1f2e3d4c", Name: "c", KubernetesVersion: "1.36.3",
		PodCIDRs: []string{"10.64.0.0/16"}, ServiceCIDRs: []string{"10.65.0.0/20"}, NodeMask: 24, DNSDomain: "cluster.local",
		Ports: Ports{API: 20001, EtcdClient: 20002, EtcdPeer: 20003, ControllerManager: 20004, Scheduler: 20005, Gateway: 20006},
		Programs: map[string]string{
			etcd: "/c/etcd", apiserver: "/c/kube-apiserver", controllerManager: "/c/kube-controller-manager", scheduler: "/c/kube-scheduler",
		},
	}
}

// TestArguments compares every flag with testdata, so that a change of one is
// seen for what it is. `go test -update` writes them anew.
func TestArguments(t *testing.T) {
	s, l := testSpec(), Layout{"/state/clusters/c-1f2e3d4c"}
	for name, args := range map[string][]string{
		etcd: etcdArgs(s, l), apiserver: apiserverArgs(s, l), controllerManager: controllerManagerArgs(s, l), scheduler: schedulerArgs(s, l),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".args")
			got := strings.Join(args, "\n") + "\n"
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
			names := map[string]bool{}
			for _, a := range args {
				flag, _, ok := strings.Cut(a, "=")
				if !ok || names[flag] {
					t.Errorf("%s has no value or is given twice", flag)
				}
				names[flag] = true
				if strings.Contains(a, "0.0.0.0") {
					t.Errorf("%s: the control plane listens on loopback alone", a)
				}
			}
		})
	}
}

// TestArgumentsKeepTheirPromises names the flags that a promise hangs on, apart
// from the golden files, which anybody may write anew.
func TestArgumentsKeepTheirPromises(t *testing.T) {
	s, l := testSpec(), Layout{"/d"}
	for _, tc := range []struct{ flag, why string }{
		{"--bind-address=127.0.0.1", "nodes reach the API through the tunnel only"},
		{"--anonymous-auth=false", "nobody is served without a name"},
		{"--authorization-mode=Node,RBAC", "a node sees what is its own"},
		{"--enable-admission-plugins=NodeRestriction", "a node does not label itself elsewhere"},
		{"--endpoint-reconciler-type=none", "loopback is no endpoint for others"},
		{"--encryption-provider-config=/d/conf/encryption.yaml", "Secrets are encrypted at rest"},
		{"--egress-selector-config-file=/d/conf/egress.yaml", "nodes are dialled through the gateway"},
		{"--audit-log-maxsize=50", "the audit log is rotated"},
	} {
		if !slices.Contains(apiserverArgs(s, l), tc.flag) {
			t.Errorf("kube-apiserver lacks %s: %s", tc.flag, tc.why)
		}
	}
	if !slices.Contains(etcdArgs(s, l), "--client-cert-auth=true") || !slices.Contains(etcdArgs(s, l), "--peer-client-cert-auth=true") {
		t.Error("etcd serves clients without a certificate")
	}
	i := slices.IndexFunc(controllerManagerArgs(s, l), func(a string) bool { return strings.HasPrefix(a, "--controllers=") })
	if i < 0 || !strings.Contains(controllerManagerArgs(s, l)[i], "-certificatesigningrequest-approving-controller") {
		t.Error("upstream's approver of node certificates runs")
	}
}
