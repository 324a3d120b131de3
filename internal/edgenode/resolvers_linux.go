//go:build linux

package edgenode

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	machineResolvConf = "/etc/resolv.conf"
	// resolvedDir is where systemd-resolved writes the real name servers; the
	// file everybody reads names only its own stub on loopback.
	resolvedDir = "/run/systemd/resolve"
)

// resolverDirs are the directories of the machine below /run in which its name
// servers are written. A node sees the directories, not the files, because
// those are replaced when the machine joins another network.
func resolverDirs() []string {
	var out []string
	if target, err := filepath.EvalSymlinks(machineResolvConf); err == nil && strings.HasPrefix(target, "/run/") {
		out = append(out, filepath.Dir(target))
	}
	if _, err := os.Stat(resolvedDir); err == nil && (len(out) == 0 || out[0] != resolvedDir) {
		out = append(out, resolvedDir)
	}
	return out
}

// resolvers reads the machine's name servers, as the node sees them: the first
// file that names one a node can reach.
func (n *node) resolvers() []netip.Addr {
	for _, path := range []string{machineResolvConf, filepath.Join(resolvedDir, "resolv.conf")} {
		found, err := readResolvers(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.log.Warn("read the machine's name servers", "file", path, "error", err)
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

func readResolvers(path string) ([]netip.Addr, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseResolvers(f)
}
