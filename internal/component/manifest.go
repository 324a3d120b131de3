package component

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

const (
	// schema is the version of manifest.json and index.json. It is also the
	// first directory of the layout.
	schema = 1
	// layoutDir is the directory under which entries are kept.
	layoutDir = "v1"
	// maxManifest and maxIndex bound what is read of a mirror: our own are a few
	// kilobytes.
	maxManifest = 1 << 20
	maxIndex    = 8 << 20
	// maxFile bounds a file of an entry. The biggest is Kubernetes, 150 MB.
	maxFile = 4 << 30
	// maxFiles bounds an entry. The biggest has seven.
	maxFiles = 256
)

// Manifest lists what an entry holds. It is written last and says by its
// presence that the entry is complete.
type Manifest struct {
	Schema    int    `json:"schema"`
	Component string `json:"component"`
	Version   string `json:"version"`
	OS        string `json:"os"`
	Arch      string `json:"arch"`
	Recipe    string `json:"recipe"`
	// Builder is the Go release that built it ("go1.26.8").
	Builder string         `json:"builder,omitempty"`
	Files   []ManifestFile `json:"files"`
}

// ManifestFile is one file of an entry.
type ManifestFile struct {
	Name   string      `json:"name"` // no directories
	Size   int64       `json:"size"` // bytes
	Mode   fs.FileMode `json:"mode"` // permission bits only
	SHA256 string      `json:"sha256"`
	// Link names an earlier file of the manifest with the same content, so that
	// it is stored and fetched once.
	Link string `json:"link,omitempty"`
}

// key is the entry's place in the layout, with slashes.
func (m Manifest) key() string {
	return entryKey(m.Component, m.Version, Platform{m.OS, m.Arch}, m.Recipe)
}

func entryKey(component, version string, p Platform, recipe string) string {
	return strings.Join([]string{layoutDir, component, version, p.String(), recipe}, "/")
}

// encode returns the manifest as it is stored.
func (m Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write manifest of %s: %w", m.Component, err)
	}
	return append(b, '\n'), nil
}

// ParseManifest reads a manifest and checks that following it cannot leave the
// entry's directory or take unbounded space.
func ParseManifest(data []byte) (Manifest, error) {
	var m Manifest
	if err := strictJSON(data, maxManifest, &m); err != nil {
		return Manifest{}, fmt.Errorf("component manifest: %w", err)
	}
	if m.Schema != schema {
		return Manifest{}, fmt.Errorf("component manifest has schema %d, this version reads %d", m.Schema, schema)
	}
	if len(m.Files) == 0 || len(m.Files) > maxFiles {
		return Manifest{}, fmt.Errorf("component manifest lists %d files, want 1 to %d", len(m.Files), maxFiles)
	}
	seen := make(map[string]ManifestFile, len(m.Files))
	for _, f := range m.Files {
		if err := checkName(f.Name); err != nil {
			return Manifest{}, fmt.Errorf("component manifest: %w", err)
		}
		if f.Name == manifestName || f.Name == verifiedName {
			return Manifest{}, fmt.Errorf("component manifest: file name %q is taken", f.Name)
		}
		if _, twice := seen[f.Name]; twice {
			return Manifest{}, fmt.Errorf("component manifest lists %q twice", f.Name)
		}
		if f.Size < 0 || f.Size > maxFile {
			return Manifest{}, fmt.Errorf("component manifest: %s has %d bytes, allowed are up to %d", f.Name, f.Size, int64(maxFile))
		}
		if f.Mode&^0o755 != 0 {
			return Manifest{}, fmt.Errorf("component manifest: %s has mode %#o, allowed is up to 0755", f.Name, uint32(f.Mode))
		}
		if !isSHA256(f.SHA256) {
			return Manifest{}, fmt.Errorf("component manifest: %s has no sha256", f.Name)
		}
		if f.Link != "" {
			to, ok := seen[f.Link]
			if !ok || to.Link != "" || to.SHA256 != f.SHA256 || to.Size != f.Size {
				return Manifest{}, fmt.Errorf("component manifest: %s links to %q, which is no earlier file with the same content", f.Name, f.Link)
			}
		}
		seen[f.Name] = f
	}
	return m, nil
}

// Index says which entries a mirror has, with the sha256 of each manifest.
type Index struct {
	Schema  int               `json:"schema"`
	Entries map[string]string `json:"entries"`
}

// ParseIndex reads an index.
func ParseIndex(data []byte) (Index, error) {
	var i Index
	if err := strictJSON(data, maxIndex, &i); err != nil {
		return Index{}, fmt.Errorf("component index: %w", err)
	}
	if i.Schema != schema {
		return Index{}, fmt.Errorf("component index has schema %d, this version reads %d", i.Schema, schema)
	}
	for key, sum := range i.Entries {
		part := strings.Split(key, "/")
		if len(part) != 5 || part[0] != layoutDir {
			return Index{}, fmt.Errorf("component index: entry %q is not %s/<component>/<version>/<platform>/<recipe>", key, layoutDir)
		}
		for _, p := range part {
			if err := checkName(p); err != nil {
				return Index{}, fmt.Errorf("component index: entry %q: %w", key, err)
			}
		}
		if !isSHA256(sum) {
			return Index{}, fmt.Errorf("component index: entry %q has no sha256", key)
		}
	}
	return i, nil
}

func (i Index) encode() ([]byte, error) {
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write component index: %w", err)
	}
	return append(b, '\n'), nil
}

// strictJSON decodes exactly one value without unknown fields.
func strictJSON(data []byte, limit int, into any) error {
	if len(data) > limit {
		return fmt.Errorf("has %d bytes, allowed are %d", len(data), limit)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("has data after its end")
	}
	return nil
}

// checkName accepts names of files and directories that mean the same on every
// system: letters, digits and ". _ - +", no leading dot.
func checkName(name string) error {
	if name == "" || len(name) > 128 || name[0] == '.' {
		return fmt.Errorf("bad name %q", name)
	}
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("._-+", r):
		default:
			return fmt.Errorf("bad name %q", name)
		}
	}
	return nil
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == strings.ToLower(s)
}
