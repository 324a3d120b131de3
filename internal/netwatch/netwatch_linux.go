package netwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// quiet is how long there must have been no message before a look: an
	// address, its route and the neighbours' answers follow each other within a
	// few milliseconds. Sessions stand still until it is over; what comes later is
	// looked at in its turn.
	quiet = 10 * time.Millisecond
	// between is the least time between two looks.
	between = 50 * time.Millisecond
	// latest is when a look is due although messages keep coming.
	latest = time.Second
	// resumeLook is how often the clocks are compared; slept is by how much they
	// must differ for the machine to have been asleep.
	resumeLook = 2 * time.Second
	slept      = time.Second
)

// Watcher looks at the network of one namespace.
type Watcher struct {
	// Namespace to look at; 0 or less: that of the caller.
	Namespace netns.NsHandle
	// Logger; nil: slog.Default.
	Logger *slog.Logger
}

// Network is where the way out leads. Any of it may be empty.
type Network struct {
	Gateway   string // address of the default gateway
	MAC       string // its link address, if it is known already
	Interface string
	Prefix    string // range of this machine's address on the interface
}

// route is a default route.
type route struct {
	netlink.Route
	family int
}

func (w Watcher) handle() (*netlink.Handle, error) {
	if w.Namespace > 0 {
		return netlink.NewHandleAt(w.Namespace, unix.NETLINK_ROUTE)
	}
	return netlink.NewHandle(unix.NETLINK_ROUTE)
}

// defaults returns the default routes, the one that is used first.
func defaults(h *netlink.Handle) ([]route, error) {
	var out []route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		for _, r := range list {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() && prefixLen(r) == 0 {
				out = append(out, route{r, family})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b route) int {
		if a.family != b.family {
			return a.family - b.family
		}
		return a.Priority - b.Priority
	})
	return out, nil
}

func prefixLen(r netlink.Route) int {
	n, _ := r.Dst.Mask.Size()
	return n
}

// Current returns the network that the machine is on now; the zero value where
// it has no way out.
func (w Watcher) Current() (Network, error) {
	h, err := w.handle()
	if err != nil {
		return Network{}, fmt.Errorf("look at the network: %w", err)
	}
	defer h.Close()
	list, err := defaults(h)
	if err != nil || len(list) == 0 {
		return Network{}, err
	}
	best := list[0]
	link, err := h.LinkByIndex(best.LinkIndex)
	if err != nil {
		return Network{}, fmt.Errorf("look at the network: %w", err)
	}
	n := Network{Interface: link.Attrs().Name}
	if best.Gw != nil {
		n.Gateway = best.Gw.String()
		// Without an answer the neighbour is not known yet.
		neighbours, err := h.NeighList(best.LinkIndex, best.family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return Network{}, fmt.Errorf("read neighbours: %w", err)
		}
		for _, nb := range neighbours {
			if nb.IP.Equal(best.Gw) && len(nb.HardwareAddr) > 0 {
				n.MAC = nb.HardwareAddr.String()
			}
		}
	}
	addrs, err := h.AddrList(link, best.family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return Network{}, fmt.Errorf("read addresses: %w", err)
	}
	for _, a := range addrs {
		if a.Scope != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		if p, err := netip.ParsePrefix(a.IPNet.String()); err == nil {
			n.Prefix = p.Masked().String()
			break
		}
	}
	return n, nil
}

// wayOut describes all that the way out depends on, for comparison only.
func (w Watcher) wayOut() (string, error) {
	h, err := w.handle()
	if err != nil {
		return "", fmt.Errorf("look at the network: %w", err)
	}
	defer h.Close()
	list, err := defaults(h)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	seen := map[int]bool{}
	for _, r := range list {
		fmt.Fprintf(&b, "via %v dev %d metric %d src %v\n", r.Gw, r.LinkIndex, r.Priority, r.Src)
		if seen[r.LinkIndex] {
			continue
		}
		seen[r.LinkIndex] = true
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // gone since; its routes will be too
		}
		fmt.Fprintf(&b, "dev %d %s\n", r.LinkIndex, link.Attrs().OperState)
		addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return "", fmt.Errorf("read addresses: %w", err)
		}
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_TENTATIVE == 0 {
				fmt.Fprintf(&b, "addr %s\n", a.IPNet)
			}
		}
	}
	return b.String(), nil
}

// Run calls changed after each change of the way out, until ctx ends, and
// returns nil then. changed must not block.
func (w Watcher) Run(ctx context.Context, changed func()) error {
	if w.Logger == nil {
		w.Logger = slog.Default()
	}
	for {
		err := w.watch(ctx, changed)
		if ctx.Err() != nil {
			return nil
		}
		// Messages were lost, most likely: too many at once. What there is now is
		// looked at anew.
		w.Logger.Warn("the network is watched anew", "error", err)
		changed()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(latest):
		}
	}
}

// watch does Run's work until messages are lost.
func (w Watcher) watch(ctx context.Context, changed func()) error {
	messages := make(chan struct{}, 1)
	failed := make(chan error, 3)
	done := make(chan struct{})
	defer close(done)
	if err := w.subscribe(done, messages, failed); err != nil {
		return err
	}
	now, err := w.wayOut() // after the subscription: nothing is missed between
	if err != nil {
		return err
	}
	ticker := time.NewTicker(resumeLook)
	defer ticker.Stop()
	asleep, looked := sleepTime(), time.Now()
	var settled, due <-chan time.Time
	for {
		look := false
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-messages:
			settled = time.After(max(quiet, time.Until(looked.Add(between))))
			if due == nil {
				due = time.After(latest)
			}
		case <-settled:
			look = true
		case <-due:
			look = true
		case <-ticker.C:
			if s := sleepTime(); s-asleep >= slept {
				asleep = s
				changed()
			}
		}
		if !look {
			continue
		}
		settled, due, looked = nil, nil, time.Now()
		next, err := w.wayOut()
		if err != nil {
			return err
		}
		if next != now {
			now = next
			changed()
		}
	}
}

// subscribe sends to messages whenever one of the kernel's lists changes.
func (w Watcher) subscribe(done <-chan struct{}, messages chan<- struct{}, failed chan<- error) error {
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	var ns *netns.NsHandle
	if w.Namespace > 0 {
		ns = &w.Namespace
	}
	links := make(chan netlink.LinkUpdate)
	addrs := make(chan netlink.AddrUpdate)
	routes := make(chan netlink.RouteUpdate)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{Namespace: ns, ErrorCallback: fail}); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	go drain(links, messages)
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{Namespace: ns, ErrorCallback: fail}); err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	go drain(addrs, messages)
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{Namespace: ns, ErrorCallback: fail}); err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	go drain(routes, messages)
	return nil
}

// drain reads until the subscription ends.
func drain[T any](from <-chan T, to chan<- struct{}) {
	for range from {
		select {
		case to <- struct{}{}:
		default:
		}
	}
}

// sleepTime is how long the machine has been asleep since it started.
func sleepTime() time.Duration {
	var with, without unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &with) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &without) != nil {
		return 0
	}
	return time.Duration(with.Nano() - without.Nano())
}
