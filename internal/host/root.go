package host

import (
	"context"
	"os/exec"
	"runtime"
)

// RootAccess says whether this process may become root without asking, which
// local nodes need; nil where it may. It is portable and changes nothing, so
// that a user is told before anything is made.
func RootAccess(ctx context.Context, euid int) error {
	if runtime.GOOS != "linux" {
		return &PreflightError{Problems: []Problem{{
			What: "local nodes run on Linux only, and this machine runs " + runtime.GOOS,
			Fix:  "Run this on a Linux machine, or leave out local nodes.",
		}}}
	}
	if euid == 0 {
		return nil
	}
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		return &PreflightError{Problems: []Problem{{
			What: "local nodes need root, this user is not root, and there is no sudo",
			Fix:  "Run the same command as root.",
		}}}
	}
	if err := exec.CommandContext(ctx, sudo, "-n", "true").Run(); err != nil {
		return &PreflightError{Problems: []Problem{{
			What: "local nodes need root, and sudo would ask for a password",
			Fix:  "Type `sudo -v` and then run the same command again in the same terminal.",
		}}}
	}
	return nil
}
