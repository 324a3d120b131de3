package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// keySize is AES-256's.
const keySize = 32

// sealingKey is what secrets are sealed with.
type sealingKey struct {
	aead cipher.AEAD
	// digest tells this key from others and nothing about it.
	digest []byte
}

// loadKey reads the key, or makes one where there is none. A file that holds
// anything else is an error: it would be a key lost by overwriting it.
func loadKey(path string) (sealingKey, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key, err = makeKey(path)
	}
	if err != nil {
		return sealingKey{}, fmt.Errorf("the replica's sealing key: %w", err)
	}
	if len(key) != keySize {
		return sealingKey{}, fmt.Errorf("the replica's sealing key: %s holds %d bytes, not %d; remove it, and the node mirrors its secrets anew", path, len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return sealingKey{}, fmt.Errorf("the replica's sealing key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return sealingKey{}, fmt.Errorf("the replica's sealing key: %w", err)
	}
	digest := sha256.Sum256(append([]byte("edge hub store key\x00"), key...))
	return sealingKey{aead: aead, digest: digest[:]}, nil
}

// makeKey writes a new key so that a power cut leaves all of it or nothing.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // it never fails
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := os.Rename(temporary, path); err != nil {
		return nil, err
	}
	return key, syncDir(filepath.Dir(path))
}

// syncDir makes new names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
