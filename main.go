// Command terraform-provider-edge is one program with two faces: the Terraform
// plugin, and, called as `edge`, the operators' command line and the daemons.
//
// Which one is decided before anything else is set up: any argument but the
// plugin's own -debug means the command line; no argument and Terraform's
// handshake in the environment means the plugin.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"

	"github.com/edgewright/terraform-provider-edge/internal/cli"
	"github.com/edgewright/terraform-provider-edge/provider"
)

// version is set by the linker (-X main.version).
var version = "0.0.1-dev"

// address is where Terraform registries know the provider.
const address = "registry.terraform.io/edgewright/edge"

func main() {
	if servesPlugin(os.Args, os.Getenv) {
		debug := len(os.Args) > 1
		err := providerserver.Serve(context.Background(), provider.New(version), providerserver.ServeOpts{Address: address, Debug: debug, ProtocolVersion: 6})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, version, os.Args)
	stop()
	os.Exit(code)
}

// servesPlugin decides between the two faces. The cookie is the one that every
// Terraform provider is started with (terraform-plugin-framework's
// providerserver); OpenTofu sends the same.
func servesPlugin(args []string, getenv func(string) string) bool {
	name := strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	switch {
	case len(args) == 2 && (args[1] == "-debug" || args[1] == "--debug") && name != "edge":
		return true
	case len(args) > 1:
		return false
	default:
		return getenv("TF_PLUGIN_MAGIC_COOKIE") != ""
	}
}
