// Command pulumi-tfgen-edge writes the Pulumi schema of the package:
//
//	pulumi-tfgen-edge schema --skip-examples --out cmd/pulumi-resource-edge
//
// The SDKs are made from that by gensdk. It leaves out the examples of the
// Terraform documentation, because the bridge translates them wrongly without a
// converter that is not to be had everywhere.
package main

import (
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfgen"

	"github.com/edgewright/terraform-provider-edge/bridge"
)

func main() {
	info := bridge.Provider()
	// Not pf/tfgen.Main, which warns of every nested name that it is ignored. It is
	// not: a test of this module sees to that.
	tfgen.MainWithCustomGenerate(info.Name, info.Version, info, func(opts tfgen.GeneratorOptions) error {
		g, err := tfgen.NewGenerator(opts)
		if err != nil {
			return err
		}
		_, err = g.Generate()
		return err
	})
}
