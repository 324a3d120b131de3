//go:build linux

package faults

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// TestBadInput shows that what can never work is refused by its name before
// anything is made.
func TestBadInput(t *testing.T) {
	r := rig.New(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	wide, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer wide.Close()
	gatewayTCPPort := wide.Addr().(*net.TCPAddr).Port
	tcpPort, udpPort := tcp.Addr().(*net.TCPAddr).Port, udp.LocalAddr().(*net.UDPAddr).Port

	named := func(name, version, body string) string {
		return header + fmt.Sprintf("resource \"edge_cluster\" \"c\" {\n  name = %q\n  version = %q\n  local = {}\n%s\n}\n", name, version, body)
	}
	for _, tc := range []struct {
		name, config string
		atPlan       bool
		says         []string
	}{
		{"a bad cluster name", named("Bad_Name", "1.36.3", ""), true, []string{"name", "Bad_Name"}},
		{"an unknown version", named("c", "1.2.3", ""), true, []string{"1.2.3", "1.36.3"}},
		{"a pod range that overlaps the service range", named("c", "1.36.3", `network = { pod_cidrs = ["10.90.0.0/16"], service_cidrs = ["10.90.16.0/20"] }`), true, []string{"10.90.16.0/20 overlaps pod range 10.90.0.0/16"}},
		{"no CIDR", named("c", "1.36.3", `network = { pod_cidrs = ["10.90.0.0"] }`), true, []string{"10.90.0.0", "CIDR"}},
		{"a range that the machine reaches already", named("c", "1.36.3", `network = { pod_cidrs = ["192.168.0.0/16"] }`), false, []string{"192.168.0.0/16", "overlaps 192.168.1.0/24"}},
		{"an API port in use", named("c", "1.36.3", fmt.Sprintf("api = { port = %d }", tcpPort)), false, []string{fmt.Sprintf("API port %d", tcpPort), "in use"}},
		{"a gateway port in use", named("c", "1.36.3", fmt.Sprintf("gateway = { port = %d }", udpPort)), false, []string{fmt.Sprintf("gateway port %d", udpPort), "in use"}},
		{"a gateway port in use by TCP", named("c", "1.36.3", fmt.Sprintf("gateway = { port = %d }", gatewayTCPPort)), false, []string{fmt.Sprintf("gateway port %d", gatewayTCPPort), "in use"}},
		{"a bad node name", named("c", "1.36.3", "") + `
resource "edge_node" "n" {
  cluster_id = edge_cluster.c.id
  pool       = "p"
  name       = "Node 1"
  local      = {}
}`, true, []string{"Node 1"}},
		{"a bad pool name", named("c", "1.36.3", "") + `
resource "edge_node_pool" "p" {
  cluster_id = edge_cluster.c.id
  name       = "-p"
}`, true, []string{"-p"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.Config(t, tc.config)
			args := applyArgs
			if tc.atPlan {
				args = []string{"plan", "-input=false", "-no-color"}
			}
			res := r.TryTerraform(t, args...)
			if res.Err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.says {
				contains(t, plain(res.Stderr), want)
			}
		})
	}
	if made, err := filepath.Glob(filepath.Join(r.StateDir, "clusters", "c-*")); err != nil || len(made) > 0 {
		t.Errorf("something was made: %v, %v", made, err)
	}
	if _, err := os.Stat(filepath.Join(r.Work(), "terraform.tfstate")); err == nil {
		if state := r.Terraform(t, "state", "list"); state != "" {
			t.Errorf("something is in state: %s", state)
		}
	}
}
