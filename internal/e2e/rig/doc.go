// Package rig is what the end-to-end tests share: the built programs, a state
// directory and a Terraform working directory of a test's own, and the promise
// that nothing is left on the machine afterwards, also when a test is killed
// (the next run sweeps up what the killed one recorded).
//
// The tests run the programs that users run: terraform from the PATH, the
// plugin from bin/ through a filesystem mirror, the edge command line. They need
// root, or sudo without a password, for nodes.
package rig
