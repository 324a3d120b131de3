//go:build !linux

package memory

// releaseProgram does nothing: the daemons run on Linux.
func releaseProgram() error { return nil }
