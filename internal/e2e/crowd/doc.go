// Package crowd is many nodes in one process: agents with nothing but their
// session. Tests and benchmarks of what a gateway does with thousands of nodes
// share it. Each has a socket of its own, so that a process with a limit of
// 20,000 descriptors holds 10,000 with room to spare.
package crowd
