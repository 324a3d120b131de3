package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Supported says why this machine cannot run a lab; nil if it can.
func Supported() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("TUN devices: %w", err)
	}
	return f.Close()
}

// TB is the part of testing.TB that ForTest uses.
type TB interface {
	Helper()
	Skip(args ...any)
	Fatal(args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// Lab is a set of hosts and links. Its methods must not be called beside Close.
type Lab struct {
	seed  uint64
	links uint64 // numbers the links: each direction has its own random numbers
	fail  func(error)
	close []func() error // in order of making; Close goes backwards
}

// New makes an empty lab. Failures to build are given to fail, which must not
// return (panic, runtime.Goexit, or the end of the process).
func New(seed uint64, fail func(error)) *Lab { return &Lab{seed: seed, fail: fail} }

// ForTest makes a lab that is closed when the test ends. It skips the test where
// labs are not possible.
func ForTest(t TB, seed uint64) *Lab {
	t.Helper()
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	l := New(seed, func(err error) { t.Fatal(err) })
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}

// Close stops links and kills the processes that Start started.
func (l *Lab) Close() error {
	var errs []error
	for i := len(l.close) - 1; i >= 0; i-- {
		errs = append(errs, l.close[i]())
	}
	l.close = nil
	return errors.Join(errs...)
}

// must hands a failure to fail.
func (l *Lab) must(err error, format string, args ...any) {
	if err != nil {
		l.fail(fmt.Errorf("lab: "+format+": %w", append(args, err)...))
	}
}

func (l *Lab) random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(l.seed, stream)) }

// Host is a network namespace with a loopback interface.
type Host struct {
	lab   *Lab
	name  string
	ns    netns.NsHandle
	nl    *netlink.Handle
	tasks chan func() // run on the thread that Start's children are born on
	ports int
}

// Host makes a host. The name is for messages only.
func (l *Lab) Host(name string) *Host {
	h := &Host{lab: l, name: name, tasks: make(chan func())}
	ready := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the host, and the kernel kills
		// the children it started with Pdeathsig.
		runtime.LockOSThread()
		ns, err := newNamespace()
		h.ns = ns
		ready <- err
		if err != nil {
			return
		}
		for f := range h.tasks {
			f()
		}
	}()
	l.must(<-ready, "make host %s", name)
	nl, err := netlink.NewHandleAt(h.ns)
	l.must(err, "open netlink in host %s", name)
	h.nl = nl
	l.close = append(l.close, func() error {
		close(h.tasks)
		nl.Close()
		return h.ns.Close()
	})
	lo, err := nl.LinkByName("lo")
	l.must(err, "loopback of host %s", name)
	l.must(nl.LinkSetUp(lo), "loopback of host %s", name)
	return h
}

// newNamespace moves this thread into a new network namespace.
func newNamespace() (netns.NsHandle, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return netns.None(), err
	}
	for file, value := range map[string]string{
		// Without it the removal of an address takes along those added later.
		"/proc/sys/net/ipv4/conf/all/promote_secondaries": "1",
		// TCP must not start a connection from what an earlier one has learnt.
		"/proc/sys/net/ipv4/tcp_no_metrics_save": "1",
		// Without addresses of its own making a device sends nothing unasked,
		// which would shift what a seed means. AddAddr turns it on where used.
		"/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
	} {
		// A kernel without IPv6 has no such file, and nothing to turn off.
		if err := os.WriteFile(file, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return netns.None(), err
		}
	}
	return netns.Get()
}

// Name returns the name the host was made with.
func (h *Host) Name() string { return h.name }

// Path is a file by which other programs (nsenter --net) find the namespace
// while this process lives.
func (h *Host) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(h.ns)) }

// Do runs fn on a thread inside the host. Sockets that it opens belong to the
// host for good; goroutines that it starts run outside.
func (h *Host) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(h.ns), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter host %s: %w", h.name, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// ListenUDP opens a UDP socket in the host.
func (h *Host) ListenUDP(addr netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	return c, err
}

// ListenTCP opens a listening TCP socket in the host.
func (h *Host) ListenTCP(addr netip.AddrPort) (ln *net.TCPListener, err error) {
	err = h.Do(func() error {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	return ln, err
}

// DialTCP connects from the host.
func (h *Host) DialTCP(ctx context.Context, addr netip.AddrPort) (c net.Conn, err error) {
	err = h.Do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, "tcp", addr.String())
		return err
	})
	return c, err
}

// Start starts cmd in the host. It is killed when the lab is closed or this
// process dies; the caller waits for it.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan error)
	h.tasks <- func() { done <- cmd.Start() }
	if err := <-done; err != nil {
		return fmt.Errorf("start in host %s: %w", h.name, err)
	}
	return nil
}
