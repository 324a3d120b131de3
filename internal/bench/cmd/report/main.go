// Command report makes BENCHMARKS.md of the rows that the benchmarks have
// written:
//
//	report [-out BENCHMARKS.md] bench/<area>.json ...
//
// It describes the machine it runs on, so it belongs to the same run. It names
// neither hosts nor paths.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
)

func main() {
	out := flag.String("out", "BENCHMARKS.md", "`file` to write")
	versions := flag.String("versions", "", "versions of what was measured, separated by semicolons")
	flag.Parse()
	if err := run(context.Background(), *out, *versions, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, versions string, files []string) error {
	if len(files) == 0 {
		return fmt.Errorf("no results are named; run make bench")
	}
	page := bench.Page{Date: time.Now(), Machine: machine(ctx)}
	for v := range strings.SplitSeq(versions, ";") {
		if v = strings.TrimSpace(v); v != "" {
			page.Versions = append(page.Versions, v)
		}
	}
	page.Versions = append(page.Versions, "built with "+runtime.Version())
	for _, file := range files {
		rows, err := bench.Read(file)
		if err != nil {
			return err
		}
		page.Areas = append(page.Areas, bench.Area{Name: strings.TrimSuffix(filepath.Base(file), ".json"), Rows: rows})
	}
	text, err := page.Markdown()
	if err != nil {
		return err
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

// machine describes this machine; what cannot be found out is "unknown".
func machine(ctx context.Context) bench.Machine {
	m := bench.Machine{CPU: "unknown processor", Cores: runtime.NumCPU(), Kernel: runtime.GOOS, System: "unknown system"}
	if v := field("/proc/cpuinfo", "model name", ":"); v != "" {
		m.CPU = v
	}
	if v := field("/etc/os-release", "PRETTY_NAME", "="); v != "" {
		m.System = strings.Trim(v, `"`)
	}
	var kb float64
	if _, err := fmt.Sscanf(field("/proc/meminfo", "MemTotal", ":"), "%g kB", &kb); err == nil {
		m.MemoryGB = kb / (1 << 20)
	}
	if raw, err := exec.CommandContext(ctx, "uname", "-sr").Output(); err == nil {
		m.Kernel = strings.TrimSpace(string(raw))
	}
	return m
}

// field returns the first value of a key in a file of key-value lines.
func field(path, key, separator string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if k, v, ok := strings.Cut(lines.Text(), separator); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
