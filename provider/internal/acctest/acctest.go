// Package acctest runs the provider's tests: real Terraform against the provider
// in this process and an engine in memory. It downloads nothing and reaches no
// network.
package acctest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-testing/echoprovider"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"

	"github.com/edgewright/terraform-provider-edge/provider"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
)

// Main is the TestMain of packages that run Terraform. It takes the terraform on
// the PATH and keeps the user's own settings out.
func Main(m *testing.M) {
	terraform, err := exec.LookPath("terraform")
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need a terraform on the PATH:", err)
		os.Exit(1)
	}
	for _, name := range os.Environ() {
		if name, _, _ := strings.Cut(name, "="); strings.HasPrefix(name, "TF_") || strings.HasPrefix(name, "EDGE_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("TF_ACC_TERRAFORM_PATH", terraform)
	os.Setenv("CHECKPOINT_DISABLE", "1")
	os.Exit(m.Run())
}

// Factories serve the provider with that engine, and a provider that echoes
// ephemeral values.
func Factories(eng *fakeengine.Engine) map[string]func() (tfprotov6.ProviderServer, error) {
	open := func(provider.Settings) (provider.Engine, error) { return eng, nil }
	return map[string]func() (tfprotov6.ProviderServer, error){
		"edge": providerserver.NewProtocol6WithError(provider.New("test",
			provider.WithEngine(open),
			provider.WithEnvironment(func(string) string { return "" }))()),
		"echo": echoprovider.NewProviderServer(),
	}
}

// Run runs steps against an engine and checks that everything is destroyed.
func Run(t *testing.T, eng *fakeengine.Engine, steps ...resource.TestStep) {
	t.Helper()
	resource.UnitTest(t, resource.TestCase{
		ProtoV6ProviderFactories: Factories(eng),
		Steps:                    steps,
	})
	if !eng.Empty() {
		t.Error("something is left after destroy")
	}
}

// NoSecrets checks that neither the state nor anything in it holds a secret of
// the engine.
func NoSecrets() statecheck.StateCheck { return noSecrets{} }

type noSecrets struct{}

func (noSecrets) CheckState(_ context.Context, req statecheck.CheckStateRequest, resp *statecheck.CheckStateResponse) {
	raw, err := json.Marshal(req.State)
	if err != nil {
		resp.Error = err
		return
	}
	for _, secret := range []string{"PRIVATE KEY", "fake-client"} {
		if strings.Contains(string(raw), secret) {
			resp.Error = fmt.Errorf("the state holds %q", secret)
		}
	}
}

// Refused checks that each case is refused, all in one plan: a resource a case,
// made of the case's lines and those of base (by attribute) that it does not
// replace. A case is its lines and a regular expression of the error, in which
// every white space is a single space. The engine must not be asked.
func Refused(t *testing.T, resourceType string, base map[string]string, cases map[string][2]string) {
	t.Helper()
	var config strings.Builder
	for name, c := range cases {
		lines := c[0]
		fmt.Fprintf(&config, "resource %q %q {\n%s\n", resourceType, identifier(name), lines)
		for attribute, line := range base {
			if !strings.HasPrefix(lines, attribute+" ") {
				config.WriteString(line + "\n")
			}
		}
		config.WriteString("}\n")
	}
	eng := fakeengine.New()
	var output string
	resource.UnitTest(t, resource.TestCase{
		ProtoV6ProviderFactories: Factories(eng),
		ErrorCheck: func(err error) error {
			output = strings.Join(strings.Fields(err.Error()), " ")
			return nil
		},
		Steps: []resource.TestStep{{Config: config.String(), PlanOnly: true}},
	})
	messages := strings.Split(output, "Error: ")
	for name, c := range cases {
		want, id := regexp.MustCompile(c[1]), identifier(name)
		var about []string
		found := false
		for _, m := range messages {
			if strings.Contains(m, "."+id+",") || strings.Contains(m, `"`+id+`"`) {
				about = append(about, m)
				found = found || want.MatchString(m)
			}
		}
		if !found {
			t.Errorf("%s: no error like %q among %q", name, c[1], about)
		}
	}
	if eng.Calls("") != 0 {
		t.Error("the engine was called")
	}
}

func identifier(name string) string { return strings.ReplaceAll(name, " ", "_") }
