package apitest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Restart kills programs, the last started first, and starts them again as they
// were. While they are down it calls between, if that is not nil. The apiserver
// may not be ready when it returns.
func (s *Server) Restart(between func() error, names ...string) error {
	var down []*child
	for i := len(s.children) - 1; i >= 0; i-- {
		c := s.children[i]
		if !slices.Contains(names, c.name) {
			continue
		}
		if err := c.kill(); err != nil {
			return err
		}
		down = append(down, c)
	}
	if len(down) != len(names) {
		return fmt.Errorf("restart %v: found %d of them", names, len(down))
	}
	s.children = slices.DeleteFunc(s.children, func(c *child) bool { return slices.Contains(names, c.name) })
	if between != nil {
		if err := between(); err != nil {
			return err
		}
	}
	for _, c := range slices.Backward(down) {
		if err := s.run(c.name, c.args...); err != nil {
			return err
		}
	}
	return nil
}

// Compact makes etcd forget every version before a revision.
func (s *Server) Compact(ctx context.Context, revision uint64) error {
	body := strings.NewReader(fmt.Sprintf(`{"revision":"%d","physical":true}`, revision))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.EtcdURL+"/v3/kv/compaction", body)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("compact etcd: %s, %w: %s", response.Status, err, answer)
	}
	return nil
}

// Backup stops etcd and the apiserver for as long as it takes to copy etcd's
// database.
func (s *Server) Backup(to string) error {
	return s.Restart(func() error {
		database, err := os.ReadFile(filepath.Join(s.dir, "etcd", "member", "snap", "db"))
		if err != nil {
			return err
		}
		return os.WriteFile(to, database, 0o600)
	}, "etcd", "kube-apiserver")
}

// Restore replaces etcd's state with that of a backup, as an operator must: its
// revision goes on from far beyond, and what was before is compacted.
func (s *Server) Restore(from string) error {
	var cluster string // --initial-cluster of etcd
	for _, c := range s.children {
		for _, arg := range c.args {
			if strings.HasPrefix(arg, "--initial-cluster=") {
				cluster = arg
			}
		}
	}
	return s.Restart(func() error {
		data := filepath.Join(s.dir, "etcd")
		if err := os.RemoveAll(data); err != nil {
			return err
		}
		command := exec.Command(s.programs["etcdutl"], "snapshot", "restore", from, "--data-dir="+data, "--skip-hash-check",
			cluster, "--initial-advertise-peer-urls="+strings.TrimPrefix(cluster, "--initial-cluster=default="),
			"--bump-revision=1000000000", "--mark-compacted")
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("restore etcd: %w: %s", err, out)
		}
		return nil
	}, "etcd", "kube-apiserver")
}
