package component

import "syscall"

// dieWithParent ends the build when this process is killed: nobody would take
// its result.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGTERM }
