//go:build !linux

package tunnel

// groReader is Linux's alone.
type groReader struct{}
