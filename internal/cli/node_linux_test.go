//go:build linux

package cli

import (
	"bufio"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
)

// What the engine sends is read line by line; what follows ends the command.
func TestNodeUpReadsItsInput(t *testing.T) {
	env := map[string]string{"HTTPS_PROXY": "http://of-the-environment"}
	getenv := func(name string) string { return env[name] }
	for _, tc := range []struct {
		name         string
		input        string
		token, proxy bool
		getenv       func(string) string
		want         edgenode.ProxyEnv
		err          bool
	}{
		{"both", "token\n" + `{"HTTPS_PROXY":"http://u:secret@p"}` + "\nrest", true, true, getenv, edgenode.ProxyEnv{"HTTPS_PROXY": "http://u:secret@p"}, false},
		{"a proxy only", `{"ALL_PROXY":"http://p"}` + "\nrest", false, true, getenv, edgenode.ProxyEnv{"ALL_PROXY": "http://p"}, false},
		{"no proxy", "token\n{}\nrest", true, true, getenv, edgenode.ProxyEnv{}, false},
		{"long", `{"NO_PROXY":"` + strings.Repeat("a", 32<<10) + `"}` + "\nrest", false, true, getenv, edgenode.ProxyEnv{"NO_PROXY": strings.Repeat("a", 32<<10)}, false},
		{"no line", "", false, true, getenv, nil, true},
		{"of the environment", "token\nrest", true, false, getenv, edgenode.ProxyEnv{"HTTPS_PROXY": "http://of-the-environment"}, false},
		{"by sudo", "rest", false, false, func(string) string { return "" }, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := bufio.NewReader(strings.NewReader(tc.input))
			if token, err := readToken(in, tc.token); err != nil || (token == "token") != tc.token {
				t.Errorf("token %q (%v)", token, err)
			}
			got, err := readProxy(in, tc.proxy, tc.getenv)
			if (err != nil) != tc.err || err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("error: %v", err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if rest, _ := in.ReadString(0); !tc.err && rest != "rest" {
				t.Errorf("left: %q", rest)
			}
		})
	}
}
