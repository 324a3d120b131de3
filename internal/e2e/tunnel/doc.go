// Package tunnel holds the promises of the tunnel to real processes: `edge
// gateway run` against a real apiserver, with agents in the test's own process.
package tunnel
