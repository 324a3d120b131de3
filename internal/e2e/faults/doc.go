// Package faults holds the promises about what goes wrong: interrupts, lost
// state directories, programs that die, ports that are taken, reboots, users
// without rights, wrong input. Each test names the promise it shows.
package faults
