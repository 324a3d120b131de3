package cli

import "github.com/spf13/cobra"

// addDaemons adds what runs on Linux hosts only.
func (a *app) addDaemons(add func(group string, commands ...*cobra.Command)) {
	add("nodes", a.newNodeCommand(), a.newLabCommand())
	add("daemons", a.newControlPlaneCommand(), a.newGatewayCommand(), a.newSuperviseCommand())
}
