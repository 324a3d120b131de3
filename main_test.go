package main

import "testing"

func TestCalled(t *testing.T) {
	cookie := func(string) string { return "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2" }
	none := func(string) string { return "" }
	for _, c := range []struct {
		name   string
		args   []string
		getenv func(string) string
		want   bool
	}{
		{"by Terraform", []string{"terraform-provider-edge_v0.1.0"}, cookie, true},
		{"by a person", []string{"terraform-provider-edge"}, none, false},
		{"to be debugged", []string{"terraform-provider-edge", "-debug"}, none, true},
		{"as a command line", []string{"terraform-provider-edge", "status"}, none, false},
		{"as a command line, from a plugin's environment", []string{"terraform-provider-edge", "node", "up"}, cookie, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := called(c.args, c.getenv); got != c.want {
				t.Errorf("called(%q) = %v, want %v", c.args, got, c.want)
			}
		})
	}
}
