// Command terraform-provider-edge is one program with two faces: the Terraform
// plugin, and, called as `edge`, the operators' command line and the daemons.
package main

import (
	"context"
	"os"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"

	"github.com/edgewright/terraform-provider-edge/internal/program"
	"github.com/edgewright/terraform-provider-edge/provider"
)

// version is set by the linker (-X main.version).
var version = "0.0.1-dev"

// address is where Terraform registries know the provider.
const address = "registry.terraform.io/edgewright/edge"

func main() {
	os.Exit(program.Run(version, program.Plugin{Called: called, Serve: serve}))
}

// called says whether Terraform calls: any argument but the plugin's own -debug
// means the command line; no argument and Terraform's handshake in the environment
// means the plugin. The cookie is the one that every Terraform provider is started
// with (terraform-plugin-framework's providerserver); OpenTofu sends the same.
func called(args []string, getenv func(string) string) bool {
	return debugging(args) || len(args) <= 1 && getenv("TF_PLUGIN_MAGIC_COOKIE") != ""
}

func debugging(args []string) bool {
	return len(args) == 2 && (args[1] == "-debug" || args[1] == "--debug")
}

func serve(ctx context.Context) error {
	return providerserver.Serve(ctx, provider.New(version), providerserver.ServeOpts{Address: address, Debug: debugging(os.Args), ProtocolVersion: 6})
}
