package component

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const (
	manifestName = "manifest.json"
	verifiedName = ".verified.json"
	indexName    = "index.json"
	// filesDir is where an entry is prepared inside its temporary directory.
	filesDir = "files"
)

// errAbsent: there is no complete entry.
var errAbsent = errors.New("not in the cache")

// depth says how closely an entry is looked at.
type depth int

const (
	// quick trusts a file whose size and time are those it had when its hash was
	// last taken.
	quick depth = iota
	// full takes every hash.
	full
)

// verifiedRecord is .verified.json. It belongs to this copy of the entry, so it
// is no part of the manifest.
type verifiedRecord struct {
	Manifest string               `json:"manifest"` // sha256
	Files    map[string]fileStamp `json:"files"`
}

type fileStamp struct {
	Size    int64 `json:"size"`
	ModTime int64 `json:"modTime"` // Unix nanoseconds
}

func stamp(i fs.FileInfo) fileStamp { return fileStamp{i.Size(), i.ModTime().UnixNano()} }

func readManifest(path string) (Manifest, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, errAbsent
	}
	if err != nil {
		return Manifest{}, err
	}
	return ParseManifest(data)
}

// verify checks an entry against its manifest.
func (s *Store) verify(dir, key string, depth depth) error {
	data, err := os.ReadFile(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return errAbsent
	}
	if err != nil {
		return err
	}
	m, err := ParseManifest(data)
	if err != nil {
		return err
	}
	if m.key() != key {
		return fmt.Errorf("manifest in %s is that of %s", dir, m.key())
	}
	sum := sha256.Sum256(data)
	record := verifiedRecord{Manifest: hex.EncodeToString(sum[:]), Files: map[string]fileStamp{}}
	old := readVerified(dir)
	changed := old.Manifest != record.Manifest
	infos := map[string]fs.FileInfo{}
	for _, f := range m.Files {
		path := filepath.Join(dir, f.Name)
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file", path)
		}
		if info.Size() != f.Size {
			return fmt.Errorf("%s has %d bytes, the manifest says %d", path, info.Size(), f.Size)
		}
		if f.Mode&0o100 != 0 && info.Mode()&0o100 == 0 && s.opts.Platform.OS != "windows" {
			return fmt.Errorf("%s is not executable", path)
		}
		infos[f.Name] = info
		record.Files[f.Name] = stamp(info)
		if depth == quick && old.Manifest == record.Manifest && old.Files[f.Name] == stamp(info) {
			continue
		}
		changed = true
		if f.Link != "" && os.SameFile(infos[f.Link], info) {
			continue
		}
		got, err := hashFile(path)
		if err != nil {
			return err
		}
		if got != f.SHA256 {
			return fmt.Errorf("%s has sha256 %s, the manifest says %s", path, got, f.SHA256)
		}
	}
	if changed {
		// The record only saves time: a read-only cache works without it.
		if err := writeVerified(dir, record); err != nil {
			s.opts.Logger.Debug("record verification", slog.String("path", dir), slog.Any("error", err))
		}
	}
	return nil
}

// readVerified returns the zero record where there is none that can be read:
// everything is hashed then.
func readVerified(dir string) verifiedRecord {
	var r verifiedRecord
	data, err := os.ReadFile(filepath.Join(dir, verifiedName))
	if err != nil || json.Unmarshal(data, &r) != nil {
		return verifiedRecord{}
	}
	return r
}

func writeVerified(dir string, r verifiedRecord) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeAtomic(filepath.Join(dir, verifiedName), data)
}

// describe makes the manifest of files that lie in a directory, in the order
// given. links maps a name to the earlier one that it is a hard link of.
func describe(m Manifest, dir string, names []string, links map[string]string) (Manifest, error) {
	m.Schema = schema
	byName := map[string]ManifestFile{}
	for _, n := range names {
		path := filepath.Join(dir, n)
		info, err := os.Lstat(path)
		if err != nil {
			return Manifest{}, err
		}
		f := ManifestFile{Name: n, Size: info.Size(), Mode: 0o755, Link: links[n]}
		if strings.HasSuffix(n, ".tar") {
			f.Mode = 0o644
		}
		if f.Link != "" {
			f.SHA256 = byName[f.Link].SHA256
		} else if f.SHA256, err = hashFile(path); err != nil {
			return Manifest{}, err
		}
		byName[n] = f
		m.Files = append(m.Files, f)
	}
	return m, nil
}

// install turns work/files into the entry. The caller holds the entry's lock and
// has checked the content against m.
func (s *Store) install(work string, m Manifest, key string) error {
	if m.key() != key {
		return fmt.Errorf("install %s: manifest is that of %s", key, m.key())
	}
	dir := filepath.Join(work, filesDir)
	record := verifiedRecord{Files: map[string]fileStamp{}}
	for _, f := range m.Files {
		path := filepath.Join(dir, f.Name)
		if f.Link == "" {
			if err := os.Chmod(path, f.Mode); err != nil {
				return err
			}
			// After a power cut the rename may be there and the content not.
			if err := syncFile(path); err != nil {
				return err
			}
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		record.Files[f.Name] = stamp(info)
	}
	data, err := m.encode()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	record.Manifest = hex.EncodeToString(sum[:])
	if err := writeVerified(dir, record); err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(dir, manifestName), data); err != nil {
		return err
	}
	final := filepath.Join(s.opts.Cache, filepath.FromSlash(key))
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat(final); err == nil {
		// A damaged entry. Programs that run from it keep their open files.
		if err := os.Rename(final, filepath.Join(work, "damaged")); err != nil {
			return err
		}
	}
	if err := os.Rename(dir, final); err != nil {
		return err
	}
	return s.updateIndex(key, record.Manifest)
}

// updateIndex keeps index.json equal to what is installed, so that a copy of the
// cache is a mirror.
func (s *Store) updateIndex(key, sum string) error {
	unlock, err := s.lockBlocking("index")
	if err != nil {
		return fmt.Errorf("lock index: %w", err)
	}
	defer unlock()
	path := filepath.Join(s.opts.Cache, indexName)
	index := Index{Schema: schema}
	data, err := os.ReadFile(path)
	if err == nil {
		if index, err = ParseIndex(data); err != nil {
			// Ours to write: start again with what is known, later installs add to it.
			s.opts.Logger.Warn("index of the component cache is unreadable and is written anew", slog.Any("error", err))
			index = Index{Schema: schema}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if index.Entries == nil {
		index.Entries = map[string]string{}
	}
	index.Entries[key] = sum
	if data, err = index.encode(); err != nil {
		return err
	}
	return writeAtomic(path, data)
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// writeAtomic replaces a file by rename. Mode 0644: it is no secret, and a web
// server that serves the directory as a mirror runs as another user.
func writeAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(data))
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
