package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// clusterArgs holds a command to a cluster and at most more arguments; its errors
// say what to type.
func clusterArgs(more int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("say which cluster: %s; `edge status` lists them", synopsis(cmd))
		}
		return atMost(1+more)(cmd, args)
	}
}

// atMost holds a command to n arguments.
func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return fmt.Errorf("%q is one argument too many: %s", args[n], synopsis(cmd))
		}
		return nil
	}
}

// synopsis is how a command is typed: "edge logs <cluster> [process]".
func synopsis(cmd *cobra.Command) string {
	path := strings.TrimSuffix(cmd.CommandPath(), cmd.Name())
	return path + cmd.Use
}
