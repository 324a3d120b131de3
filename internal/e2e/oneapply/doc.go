// Package oneapply holds the promises of one apply: a real cluster with real
// edge nodes behind NAT on one machine, reached only through the tunnel. Each
// test names the promise it shows.
package oneapply
