//go:build linux

package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// lastLinesBytes is how much of the end of a log is looked at.
	lastLinesBytes = 64 << 10
	// lastLineBytes bounds one line of an error message; a stack of requests in
	// one line would hide the rest.
	lastLineBytes = 1 << 10
)

// openLog opens a log to append to. No log is ever a symbolic link: the daemon
// may be root and the directory a user's.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// rotateLog moves the content of path to path.1 when it has reached limit
// bytes, after moving path.1 to path.2 and so on; keep files stay. The file is
// copied and then cut to nothing, because the program holds it open: what it
// writes between the last read and the cut (microseconds) is lost.
func rotateLog(path string, limit int64, keep int) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	if info.Size() < limit {
		return nil
	}
	src, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	defer src.Close()
	// Copied before the kept ones move, so that a full disk loses none of them.
	fresh := path + ".new"
	dst, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Close()); err != nil {
		os.Remove(fresh)
		return fmt.Errorf("rotate log: %w", err)
	}
	for i := keep - 1; i >= 1; i-- {
		err := os.Rename(numbered(path, i), numbered(path, i+1))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	if err := os.Rename(fresh, numbered(path, 1)); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	if err := src.Truncate(0); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	return nil
}

func numbered(path string, i int) string { return fmt.Sprintf("%s.%d", path, i) }

// LastLines returns up to n of the last lines of a log file, oldest first. If
// the file has just been rotated it goes on in the newest rotated one. A file
// that does not exist has no lines.
func LastLines(logFile string, n int) ([]string, error) {
	lines, err := tail(logFile, n)
	if err != nil || len(lines) == n {
		return lines, err
	}
	older, err := tail(numbered(logFile, 1), n-len(lines))
	if err != nil {
		return nil, err
	}
	return append(older, lines...), nil
}

func tail(path string, n int) ([]string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	from := max(0, info.Size()-lastLinesBytes)
	data := make([]byte, info.Size()-from)
	read, err := f.ReadAt(data, from)
	if err != nil && !errors.Is(err, io.EOF) { // it may have been cut meanwhile
		return nil, fmt.Errorf("read log: %w", err)
	}
	data = data[:read]
	if from > 0 {
		if _, rest, ok := bytes.Cut(data, []byte{'\n'}); ok {
			data = rest // what came before is the end of a line
		}
	}
	return lastLines(data, n), nil
}

func lastLines(data []byte, n int) []string {
	text := strings.TrimRight(string(data), "\n")
	if text == "" || n <= 0 {
		return nil
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		if len(line) > lastLineBytes {
			lines[i] = line[:lastLineBytes] + " …"
		}
		lines[i] = strings.ToValidUTF8(lines[i], "\uFFFD")
	}
	return lines
}
