// Command quickstart is the quickstart as a Pulumi program.
package main

import (
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/edgewright/terraform-provider-edge/examples/pulumi/go/quickstart"
)

func main() { pulumi.Run(quickstart.Deploy) }
