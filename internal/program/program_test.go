package program

import "testing"

func TestIsEdge(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want bool
	}{
		{"copy below the state directory", []string{"/home/u/.edge/bin/0a1b2c3d4e5f/edge", "control-plane", "run"}, true},
		{"on the PATH", []string{"edge"}, true},
		{"on Windows", []string{"edge.exe", "status"}, true},
		{"Terraform's plugin", []string{"/plugins/terraform-provider-edge_v0.1.0"}, false},
		{"Pulumi's plugin", []string{"pulumi-resource-edge", "127.0.0.1:4711"}, false},
		{"nothing", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := isEdge(c.args); got != c.want {
				t.Errorf("isEdge(%q) = %v, want %v", c.args, got, c.want)
			}
		})
	}
}
