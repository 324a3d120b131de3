// Command pulumi-resource-edge is the Pulumi plugin, and, called as `edge`, the
// operators' command line and the daemons, as the Terraform plugin is.
package main

import (
	"os"

	"github.com/edgewright/terraform-provider-edge/bridge"
	"github.com/edgewright/terraform-provider-edge/bridge/pkg/version"
	"github.com/edgewright/terraform-provider-edge/internal/program"
)

func main() {
	os.Exit(program.Run(version.Version, program.Plugin{
		// The CLI passes an address and flags, which are not the command line's; a
		// person who debugs passes nothing.
		Called: func([]string, func(string) string) bool { return true },
		Serve:  bridge.Serve,
	}))
}
