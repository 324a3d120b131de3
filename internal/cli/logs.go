package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

func (a *app) newProgressCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "progress <cluster>",
		Short: "Show the steps of the last create, change or destroy, with their times",
		Args:  clusterArgs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.clusterDir(args[0])
			if err != nil {
				return err
			}
			return a.tailFile(cmd.Context(), filepath.Join(dir, "progress.ndjson"), follow, 0, func(line string) string {
				var p engine.Progress
				if a.output == "json" || json.Unmarshal([]byte(line), &p) != nil {
					return line
				}
				return fmt.Sprintf("%s  %8.1fs  %-14s  %s", p.Time.Local().Format(time.DateTime), p.Elapsed.Seconds(), p.Phase, p.Message)
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as new steps come")
	return c
}

func (a *app) newLogsCommand() *cobra.Command {
	var follow bool
	var node string
	var lines int
	c := &cobra.Command{
		Use:   "logs <cluster> [process]",
		Short: "Show what a cluster's or local node's own processes printed",
		Long:  "Show what a process of a cluster printed, or, without one, list the processes.\nWith --node, those of a local node of the cluster.",
		Args:  clusterArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.clusterDir(args[0])
			if err != nil {
				return err
			}
			list := "edge logs " + args[0]
			if node != "" {
				dir = filepath.Join(dir, "nodes", filepath.Base(node))
				list += " --node " + node
				if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("cluster %s has no node %q on this machine; `edge status %s` lists its nodes", args[0], node, args[0])
				}
			}
			dir = filepath.Join(dir, "logs")
			if len(args) == 1 {
				return a.listLogs(dir)
			}
			path := filepath.Join(dir, filepath.Base(args[1])+".log")
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("no process %q has logged here; `%s` lists them", args[1], list)
			}
			return a.tailFile(cmd.Context(), path, follow, lines, func(s string) string { return s })
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as new lines come")
	c.Flags().StringVar(&node, "node", "", "a local node of the cluster")
	c.Flags().IntVarP(&lines, "lines", "n", 100, "how many of the last lines to show; 0: all")
	return c
}

// listLogs prints the processes that have a log file in dir; nothing has where
// dir does not exist yet.
func (a *app) listLogs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list logs: %w", err)
	}
	type row struct {
		Process string    `json:"process"`
		Bytes   int64     `json:"bytes"`
		Changed time.Time `json:"last_written"`
	}
	rows := []row{}
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".log")
		if !ok {
			continue
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return fmt.Errorf("list logs: %w", err)
		}
		rows = append(rows, row{name, info.Size(), info.ModTime()})
	}
	return a.print(rows, "PROCESS\tBYTES\tLAST WRITTEN", func(add func(...any)) {
		for _, r := range rows {
			add(r.Process, r.Bytes, r.Changed.Format(time.DateTime))
		}
	})
}

// look is how often a followed file is looked at. It is followed so, because it
// is truncated in place when it is rotated, which no notification tells apart
// from writing.
const look = 250 * time.Millisecond

// tailFile prints the last lines of a file (0: all) and, with follow, what is
// appended until ctx ends.
func (a *app) tailFile(ctx context.Context, path string, follow bool, last int, format func(string) string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open what was recorded: %w", err)
	}
	defer f.Close()
	t := &tail{f: f, r: bufio.NewReader(f)}
	var ring []string
	if err := t.lines(func(line string) {
		ring = append(ring, line)
		if last > 0 && len(ring) > last {
			ring = ring[1:]
		}
	}); err != nil {
		return err
	}
	show := func(line string) { fmt.Fprintln(a.Out, format(line)) }
	for _, line := range ring {
		show(line)
	}
	if !follow {
		t.rest(show)
		return nil
	}
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			t.rest(show)
			return nil
		case <-ticker.C:
		}
		if err := t.rewind(show); err != nil {
			return err
		}
		if err := t.lines(show); err != nil {
			return err
		}
	}
}

// tail reads a file that grows, line by line.
type tail struct {
	f       *os.File
	r       *bufio.Reader
	partial string // of a line whose end is not written yet
}

// lines gives each the whole lines that there are.
func (t *tail) lines(each func(string)) error {
	for {
		text, err := t.r.ReadString('\n')
		t.partial += text
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what was recorded: %w", err)
		}
		each(strings.TrimSuffix(t.partial, "\n"))
		t.partial = ""
	}
}

// rest gives each what a last line without an end holds.
func (t *tail) rest(each func(string)) {
	if t.partial != "" {
		each(t.partial)
	}
	t.partial = ""
}

// rewind goes back to the start of a file that has become shorter.
func (t *tail) rewind(each func(string)) error {
	info, err := t.f.Stat()
	if err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	at, err := t.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	if info.Size() >= at-int64(t.r.Buffered()) {
		return nil
	}
	t.rest(each)
	if _, err := t.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	t.r.Reset(t.f)
	return nil
}
