//go:build !linux

package cli

import "github.com/spf13/cobra"

// addDaemons adds nothing: clusters and nodes run on Linux hosts only.
func (a *app) addDaemons(func(group string, commands ...*cobra.Command)) {}
