package bridge

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

func committed(t *testing.T) schema.PackageSpec {
	t.Helper()
	var spec schema.PackageSpec
	if err := json.Unmarshal(schemaFile, &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestResources(t *testing.T) {
	info := Provider()
	spec := committed(t)
	if got, want := len(info.Resources), len(importIDs); got != want {
		t.Errorf("%d resources, and %d of them have a form of import id", got, want)
	}
	if got, want := len(spec.Resources), len(info.Resources); got != want {
		t.Errorf("%d resources in the schema, want %d", got, want)
	}
	for name, r := range info.Resources {
		t.Run(name, func(t *testing.T) {
			if got := string(r.Tok); got != token(name) {
				t.Errorf("its token is %s, and messages say %s", got, token(name))
			}
			if !r.DeleteBeforeReplace {
				t.Error("a replacement is made while the old one has the name")
			}
			if r.Fields["name"] != nil && r.Fields["name"].Default != nil {
				t.Error("its name is made up")
			}
			s, ok := spec.Resources[token(name)]
			if !ok {
				t.Fatal("it is not in the schema")
			}
			if !slices.Contains(s.RequiredInputs, "name") {
				t.Errorf("required are %q, without the name", s.RequiredInputs)
			}
			if !strings.Contains(s.Description, "pulumi import "+token(name)+" <name> '"+importIDs[name]+"'") {
				t.Errorf("its description does not say how it is imported:\n%s", s.Description)
			}
		})
	}
}

// Property names as both SDKs have them. A new name is looked at before it is
// added here: is it what a user would write?
func TestPropertyNames(t *testing.T) {
	names := map[string]bool{}
	spec := committed(t)
	for _, r := range spec.Resources {
		for p := range r.InputProperties {
			names[p] = true
		}
		for p := range r.Properties {
			names[p] = true
		}
	}
	for tok, f := range spec.Functions {
		if !strings.HasPrefix(tok, pkg+":") {
			continue // every package's, like pulumi:providers:edge/terraformConfig
		}
		for p := range f.Inputs.Properties {
			names[p] = true
		}
		for p := range f.ReturnType.ObjectTypeSpec.Properties {
			names[p] = true
		}
	}
	for _, ty := range spec.Types {
		for p := range ty.Properties {
			names[p] = true
		}
	}
	var got []string
	for n := range names {
		got = append(got, n)
	}
	slices.Sort(got)
	want := strings.Fields(`annotations api architecture args autonomy caCertificate cache clusterId command connected containers context create
		cutSince delete dnsDomain drain duration endpoint engineVersion env gateway gone host id image imagePullPolicy kubeconfig kubeconfigPath kubernetesVersion
		labels limits local message mirror name namespace network nodeMask onDestroy phase podCidrs pool pools port ports protocol read ready reason
		replicas requests resources rollout service serviceCidrs source status taints targetPort template timeout timeouts
		token transport type update version wait`)
	if !slices.Equal(got, want) {
		t.Errorf("property names are\n%q, want\n%q", got, want)
	}
}

func TestDescriptions(t *testing.T) {
	spec := committed(t)
	check := func(where, text string) {
		t.Helper()
		if strings.TrimSpace(text) == "" {
			t.Errorf("%s has no description", where)
		}
		for _, wrong := range []string{"<span", "```terraform", "local = {}"} {
			if strings.Contains(text, wrong) {
				t.Errorf("the description of %s holds %q:\n%s", where, wrong, text)
			}
		}
	}
	for tok, r := range spec.Resources {
		check(tok, r.Description)
		for name, p := range r.InputProperties {
			check(tok+"."+name, p.Description)
		}
		for name, p := range r.Properties {
			check(tok+"."+name, p.Description)
		}
	}
	for tok, ty := range spec.Types {
		for name, p := range ty.Properties {
			check(tok+"."+name, p.Description)
		}
	}
}

func TestAccessesAreSecret(t *testing.T) {
	spec := committed(t)
	if !spec.Config.Variables["clusters"].Secret || !spec.Provider.InputProperties["clusters"].Secret {
		t.Error("clusters, which may hold a token, is not secret")
	}
}

func TestDownloadURL(t *testing.T) {
	if got := committed(t).PluginDownloadURL; got != downloadURL {
		t.Errorf("plugins are looked for at %s, want %s", got, downloadURL)
	}
	raw, err := os.ReadFile("sdk/go/edge/pulumi-plugin.json")
	if err != nil {
		t.Fatal(err)
	}
	var plugin struct{ Server string }
	if err := json.Unmarshal(raw, &plugin); err != nil || plugin.Server != downloadURL {
		t.Errorf("the SDK for Go looks for them at %q, %v", plugin.Server, err)
	}
}
