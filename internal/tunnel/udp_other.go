//go:build !linux

package tunnel

// packetReader is Linux's alone.
type packetReader struct{}
