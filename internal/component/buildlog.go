package component

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// tailLines is how many lines of a log an error shows: a compiler's message and
// what led to it.
const tailLines = 20

// buildLog is a log file of which the end is kept in memory.
type buildLog struct {
	path string
	f    *os.File

	mu      sync.Mutex // guards the rest
	end     []string
	network string // last line that says that the network failed
	failed  error  // of writing
}

func openBuildLog(cache, name string) (*buildLog, error) {
	dir := filepath.Join(cache, "logs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name+".log")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open build log: %w", err)
	}
	return &buildLog{path: path, f: f}, nil
}

func (l *buildLog) line(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := fmt.Fprintln(l.f, text); err != nil && l.failed == nil {
		l.failed = err
	}
	l.end = append(l.end, text)
	if len(l.end) > tailLines {
		l.end = l.end[1:]
	}
	if saysNetwork(text) {
		l.network = text
	}
}

// networkSigns are how the go command words failures of a download that may not
// come again. Refusals (404, 410, checksum mismatch) are not among them.
var networkSigns = []string{
	"dial tcp", "no such host", "i/o timeout", "connection refused", "connection reset", "network is unreachable",
	"TLS handshake timeout", "unexpected EOF", "proxyconnect", "stream error", "Client.Timeout", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout",
	"429 Too Many Requests", "500 Internal Server Error",
}

func saysNetwork(line string) bool {
	for _, s := range networkSigns {
		if strings.Contains(line, s) {
			return true
		}
	}
	return false
}

func (l *buildLog) networkFailed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.network != ""
}

func (l *buildLog) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.network
}

// forget starts anew for another try.
func (l *buildLog) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.network = ""
}

func (l *buildLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.end, "\n")
}

func (l *buildLog) Close() error {
	err := l.f.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	return err
}
