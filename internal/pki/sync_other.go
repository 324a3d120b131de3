//go:build !unix

package pki

// syncDir does nothing: directories cannot be synced here, and renames are
// written through.
func syncDir(string) error { return nil }
