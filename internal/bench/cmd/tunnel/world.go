//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/netlab"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

const (
	nodeName = "edge-1"
	// targetAddr is where the target listens in the edge's namespace.
	targetAddr = "127.0.0.1:10250"
	// target is what clients ask the gateway for.
	target = nodeName + ":10250"
	// readyTimeout bounds the start of a subject: ten times what it takes.
	readyTimeout = 30 * time.Second
)

var (
	cloudPrefix = netip.MustParsePrefix("10.77.0.1/24")
	edgePrefix  = netip.MustParsePrefix("10.77.0.2/24")
	gatewayAddr = netip.AddrPortFrom(cloudPrefix.Addr(), 7443)
)

// world is what the measurements of a run share.
type world struct {
	options
	self string // this program
	dir  string // temporary
	pki  string
}

func (w *world) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func openWorld(o options) (*world, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "edge-bench-tunnel-")
	if err != nil {
		return nil, err
	}
	w := &world{options: o, self: self, dir: dir, pki: filepath.Join(dir, "pki")}
	if err := w.certify(); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) close() error { return os.RemoveAll(w.dir) }

// certify makes the authority and the two certificates that every subject uses.
func (w *world) certify() error {
	store, err := pki.Open(w.pki, nil)
	if err != nil {
		return err
	}
	ca, err := store.Authority("ca", "edge-bench")
	if err != nil {
		return err
	}
	for _, r := range []pki.Request{
		{Name: "server", CommonName: "edge-gateway", DNSNames: []string{"edge-gateway"},
			IPs: []net.IP{cloudPrefix.Addr().AsSlice(), net.IPv4(127, 0, 0, 1)}, Server: true, Client: true},
		{Name: "node", CommonName: "system:node:" + nodeName, Organizations: []string{"system:nodes"}, Client: true},
	} {
		if _, _, _, err := store.Ensure(ca, r); err != nil {
			return err
		}
	}
	return nil
}

// bed is one subject on one line.
type bed struct {
	w           *world
	dir         string
	lab         *netlab.Lab
	cloud, edge *netlab.Host
	link        *netlab.Link  // nil with a cable
	cable       *netlab.Cable // nil with a link
	children    []*exec.Cmd
	// What the two ends of the tunnel run as, in the order they were started.
	ends []*exec.Cmd
}

// line is what a bed's hosts are joined by.
type line struct {
	name  string
	shape netlab.Shape
	cable float64 // Mbit/s of a cable in place of an emulated line
}

// newBed makes a bed with the target in it. Failures panic with labFailure,
// which measure turns into an error.
func (w *world) newBed(seed uint64, l line) *bed {
	b := &bed{w: w, lab: netlab.New(seed, func(err error) { panic(labFailure{err}) })}
	b.cloud, b.edge = b.lab.Host("cloud"), b.lab.Host("edge")
	cloud, edge := netlab.Port{Host: b.cloud, Prefix: cloudPrefix}, netlab.Port{Host: b.edge, Prefix: edgePrefix}
	if l.cable > 0 {
		b.cable = b.lab.Cable(cloud, edge, l.cable)
	} else {
		b.link = b.lab.Link(cloud, edge, l.shape)
	}
	return b
}

type labFailure struct{ err error }

// with runs f on a bed of its own, on which the subject runs, and takes it down.
func (w *world) with(ctx context.Context, s subject, seed uint64, l line, f func(context.Context, *bed, dialer) error) error {
	return w.onBed(ctx, s.name, seed, l, func(ctx context.Context, b *bed) error {
		if _, err := b.start(ctx, b.edge, w.self, roleCommand, "target", "-listen", targetAddr); err != nil {
			return err
		}
		dial, err := s.start(ctx, b)
		if err != nil {
			return err
		}
		if err := b.ready(ctx, dial); err != nil {
			return err
		}
		return f(ctx, b, dial)
	})
}

// onBed runs f on an empty bed and takes it down. The name is for messages.
func (w *world) onBed(ctx context.Context, name string, seed uint64, l line, f func(context.Context, *bed) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var b *bed
	defer func() {
		if p := recover(); p != nil {
			lf, ok := p.(labFailure)
			if !ok {
				panic(p)
			}
			err = lf.err
		}
		if b != nil {
			err = errors.Join(err, b.close())
		}
		if err != nil {
			err = fmt.Errorf("%s, %s, seed %d: %w", name, l.name, seed, err)
		}
	}()
	b = w.newBed(seed, l)
	if b.dir, err = os.MkdirTemp(w.dir, "bed-"); err != nil {
		return err
	}
	return f(ctx, b)
}

// start starts a program in a host; its output goes to a file.
func (b *bed) start(ctx context.Context, h *netlab.Host, program string, args ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	log, err := os.Create(filepath.Join(b.dir, fmt.Sprintf("%d-%s.log", len(b.children), filepath.Base(program))))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = b.dir
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	b.children = append(b.children, cmd)
	return cmd, nil
}

// startEnd is start for one of the two ends of the tunnel.
func (b *bed) startEnd(ctx context.Context, h *netlab.Host, program string, args ...string) error {
	cmd, err := b.start(ctx, h, program, args...)
	if err == nil {
		b.ends = append(b.ends, cmd)
	}
	return err
}

// close kills the processes and removes the line.
func (b *bed) close() error {
	for _, c := range b.children {
		_ = c.Process.Kill() // or it has ended
		_ = c.Wait()         // by our signal
	}
	return errors.Join(b.lab.Close(), os.RemoveAll(b.dir))
}

// ready waits until an echo comes back.
func (b *bed) ready(ctx context.Context, dial dialer) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		_, err := firstByte(ctx, dial)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w%s", readyTimeout, err, b.logs())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// logs are the last words of the bed's processes.
func (b *bed) logs() string {
	var out strings.Builder
	files, _ := filepath.Glob(filepath.Join(b.dir, "*.log"))
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err == nil && len(raw) > 0 {
			fmt.Fprintf(&out, "\n%s: %s", filepath.Base(f), raw[max(0, len(raw)-400):])
		}
	}
	return out.String()
}

// cpu is the processor time that a process has used.
func cpu(c *exec.Cmd) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name, field 2, may hold spaces; utime and stime are 14 and 15.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil // USER_HZ is 100 everywhere
}
