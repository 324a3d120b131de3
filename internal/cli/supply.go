package cli

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

// addSupply adds the commands about programs and images.
func (a *app) addSupply(add func(group string, commands ...*cobra.Command)) {
	f, isFile := a.Err.(*os.File)
	add("supply",
		newComponentCommand(componentDeps{
			Out: a.Out, Err: a.Err, Terminal: isFile && term.IsTerminal(int(f.Fd())),
			Output:  func() string { return a.output },
			Options: component.DefaultOptions(os.Getenv), Now: time.Now,
		}),
		newImageCommand(imageDeps{
			Out: a.Out, Output: func() string { return a.output },
			Directory: func() (string, error) {
				e, err := a.engine()
				if err != nil {
					return "", err
				}
				return e.ImageDir(), nil
			},
		}),
	)
}
