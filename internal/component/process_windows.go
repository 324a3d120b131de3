package component

import "os/exec"

// ownGroup leaves the command as it is: ending it ends the build, its compilers
// finish the file they are at.
func ownGroup(*exec.Cmd) {}

func lowerPriority(int) {}
