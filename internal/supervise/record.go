//go:build linux

package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxRecordBytes bounds what is read as a record; real ones have some hundred
// bytes.
const maxRecordBytes = 64 << 10

// errDamaged means that a record is there and cannot be one of ours.
var errDamaged = errors.New("damaged")

// record is what is kept of a running child, <RunDir>/<name>.json. It is enough
// to stop the child without its spec.
type record struct {
	Identity
	Name        string         `json:"name"`
	Digest      string         `json:"digest"`
	Path        string         `json:"path"`
	Started     time.Time      `json:"started"`
	LogFile     string         `json:"logFile"`
	StopSignal  syscall.Signal `json:"stopSignal"`
	StopTimeout time.Duration  `json:"stopTimeout"` // nanoseconds
}

func recordPath(runDir, name string) string { return filepath.Join(runDir, name+".json") }

func parseRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, err
	}
	if !validName.MatchString(r.Name) || r.PID <= 0 || r.StopTimeout < 0 {
		return record{}, errors.New("a field has an impossible value")
	}
	if r.StopSignal <= 0 || r.StopSignal > 64 {
		return record{}, errors.New("the stop signal is none")
	}
	return r, nil
}

func readRecord(runDir, name string) (record, error) {
	data, err := readSmall(recordPath(runDir, name))
	if err != nil {
		return record{}, err
	}
	r, err := parseRecord(data)
	if err != nil {
		return record{}, fmt.Errorf("record %s: %w: %w", recordPath(runDir, name), errDamaged, err)
	}
	return r, nil
}

// recordedNames lists the children with a record. A directory that does not
// exist has none.
func recordedNames(runDir string) ([]string, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if ok && validName.MatchString(name) && !slices.Contains(reservedNames, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func removeRecord(runDir, name string) error {
	err := os.Remove(recordPath(runDir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}

// writeJSON replaces path with v as JSON, 0600; a reader sees the old or the
// new content.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0) // no record is a link
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRecordBytes {
		return nil, fmt.Errorf("%s is larger than any record", path)
	}
	return io.ReadAll(io.LimitReader(f, maxRecordBytes))
}

// makeDir makes a private directory and returns its absolute path without
// symbolic links, which is what markers are compared by.
func makeDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("no directory given")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return resolveDir(dir)
}

func resolveDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return abs, nil // gone; its processes may not be
	}
	return resolved, err
}
