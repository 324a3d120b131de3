package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Port is where a link or cable is plugged in: a host, and the address and
// network that its device gets.
type Port struct {
	Host   *Host
	Prefix netip.Prefix
}

// Shape is what a direction of a link does to packets, in this order.
type Shape struct {
	// Loss is the probability that a packet is lost, 0 to 1, each on its own.
	Loss float64
	// Rate of the line in bits per second of IP packets; 0: no limit.
	Rate float64
	// Queue is how long a packet may wait for the line; one that would have to
	// wait longer is dropped.
	Queue time.Duration
	// Delay is the time on the way once sent.
	Delay time.Duration
	// Jitter adds up to so much to Delay, uniformly and for each packet alone:
	// packets overtake each other.
	Jitter time.Duration
	// MTU is how large an IP packet may be, in bytes; 0: as large as the devices
	// at both ends let it be. One that is larger is lost, and no ICMP message says
	// so, as on a link in between whose router does not send them.
	MTU int
}

// WAN is the line most measurements use: mbps Mbit/s, half of rtt each way, and
// a queue of 60 ms.
func WAN(mbps float64, rtt time.Duration) Shape {
	return Shape{Rate: mbps * 1e6, Delay: rtt / 2, Queue: 60 * time.Millisecond}
}

// WithLoss returns s with a probability of loss.
func (s Shape) WithLoss(p float64) Shape { s.Loss = p; return s }

// WithMTU returns s with an MTU.
func (s Shape) WithMTU(n int) Shape { s.MTU = n; return s }

// WithJitter returns s with jitter.
func (s Shape) WithJitter(d time.Duration) Shape { s.Jitter = d; return s }

// Link is a TUN pair and what happens in between.
type Link struct {
	A, B       *End
	AToB, BToA *Direction
}

// Link connects two ports with both directions of the same shape.
func (l *Lab) Link(a, b Port, s Shape) *Link {
	k := &Link{A: l.tun(a), B: l.tun(b)}
	k.AToB = l.pump(k.A.tun, k.B.tun, s)
	k.BToA = l.pump(k.B.tun, k.A.tun, s)
	return k
}

// SetShape changes both directions.
func (k *Link) SetShape(s Shape) {
	k.AToB.SetShape(s)
	k.BToA.SetShape(s)
}

// Cut loses everything from now on, what is on the way too.
func (k *Link) Cut() {
	k.AToB.SetCut(true)
	k.BToA.SetCut(true)
}

// SetUDPBlocked loses UDP in both directions, or no longer, as a firewall does
// that knows TCP only.
func (k *Link) SetUDPBlocked(blocked bool) {
	k.AToB.SetUDPBlocked(blocked)
	k.BToA.SetUDPBlocked(blocked)
}

// Restore ends cuts and blocks of both directions. Shapes stay.
func (k *Link) Restore() {
	for _, d := range []*Direction{k.AToB, k.BToA} {
		d.SetCut(false)
		d.SetUDPBlocked(false)
	}
}

// End is a device in a host.
type End struct {
	Host   *Host
	Device string
	link   netlink.Link
	prefix netip.Prefix
	tun    *os.File // of a Link
}

// Addr is the device's present address.
func (e *End) Addr() netip.Addr { return e.prefix.Addr() }

// Prefix is the device's present address and network.
func (e *End) Prefix() netip.Prefix { return e.prefix }

// ifreq is a device's name and flags as TUNSETIFF takes them (struct ifreq of
// linux/if.h, padded to its size).
type ifreq struct {
	name  [unix.IFNAMSIZ]byte
	flags uint16
	_     [22]byte
}

// tun makes a TUN device in a host, up and with its address.
func (l *Lab) tun(p Port) *End {
	e := &End{Host: p.Host, Device: fmt.Sprintf("tun%d", p.Host.ports), prefix: p.Prefix}
	p.Host.ports++
	err := p.Host.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req := ifreq{flags: unix.IFF_TUN | unix.IFF_NO_PI} // without IFF_PERSIST it goes with the descriptor
		copy(req.name[:], e.Device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); errno != 0 {
			_ = unix.Close(fd)
			return errno
		}
		// Non-blocking, so that the runtime's poller waits and Close wakes it.
		if err := unix.SetNonblock(fd, true); err != nil {
			_ = unix.Close(fd)
			return err
		}
		e.tun = os.NewFile(uintptr(fd), e.Device)
		return nil
	})
	l.must(err, "make %s in host %s", e.Device, p.Host.name)
	l.close = append(l.close, func() error { return ignoreClosed(e.tun.Close()) })
	e.link, err = p.Host.nl.LinkByName(e.Device)
	l.must(err, "%s of host %s", e.Device, p.Host.name)
	// A sender's burst must wait for the pump and not be dropped before it: the
	// only queue that drops is the line's.
	l.must(p.Host.nl.LinkSetTxQLen(e.link, 10_000), "queue of %s in host %s", e.Device, p.Host.name)
	l.configure(e)
	return e
}

// configure gives a device its address and brings it up.
func (l *Lab) configure(e *End) {
	l.must(e.AddAddr(e.prefix), "configure")
	l.must(e.SetUp(true), "set up")
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // usable at once
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// SetUp brings the device up or down. Down takes its routes away: sends fail
// with ENETUNREACH.
func (e *End) SetUp(up bool) error {
	set := e.Host.nl.LinkSetDown
	if up {
		set = e.Host.nl.LinkSetUp
	}
	if err := set(e.link); err != nil {
		return fmt.Errorf("%s of host %s: %w", e.Device, e.Host.name, err)
	}
	return nil
}

// Readdress gives the device another address in place of the present one, as
// DHCP does.
func (e *End) Readdress(p netip.Prefix) error {
	if err := e.AddAddr(p); err != nil {
		return err
	}
	old := e.prefix
	e.prefix = p
	return e.DelAddr(old)
}

// AddAddr gives the device one more address.
func (e *End) AddAddr(p netip.Prefix) error {
	if p.Addr().Is6() {
		file := "/proc/sys/net/ipv6/conf/" + e.Device + "/disable_ipv6"
		if err := e.Host.Do(func() error { return os.WriteFile(file, []byte("0"), 0) }); err != nil {
			return fmt.Errorf("IPv6 on %s of host %s: %w", e.Device, e.Host.name, err)
		}
	}
	if err := e.Host.nl.AddrAdd(e.link, address(p)); err != nil {
		return fmt.Errorf("add address %s to %s of host %s: %w", p, e.Device, e.Host.name, err)
	}
	return nil
}

// DelAddr takes an address away.
func (e *End) DelAddr(p netip.Prefix) error {
	if err := e.Host.nl.AddrDel(e.link, address(p)); err != nil {
		return fmt.Errorf("take address %s from %s of host %s: %w", p, e.Device, e.Host.name, err)
	}
	return nil
}

// SetMTU changes the device's own MTU, so that the host cannot send what is larger.
func (e *End) SetMTU(n int) error {
	if err := e.Host.nl.LinkSetMTU(e.link, n); err != nil {
		return fmt.Errorf("MTU %d of %s in host %s: %w", n, e.Device, e.Host.name, err)
	}
	return nil
}

// AddRoute sends what is for dst into the device.
func (e *End) AddRoute(dst netip.Prefix) error { return e.AddRouteMetric(dst, 0) }

// AddRouteMetric does so where there is no route for dst with a lower metric.
func (e *End) AddRouteMetric(dst netip.Prefix, metric int) error {
	r := &netlink.Route{LinkIndex: e.link.Attrs().Index, Dst: ipNet(dst.Masked()), Priority: metric}
	if err := e.Host.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s into %s of host %s: %w", dst, e.Device, e.Host.name, err)
	}
	return nil
}

// PinTCP makes TCP connections to the device's network use a congestion control
// algorithm ("cubic", "bbr"), whatever the machine's default is.
func (e *End) PinTCP(algorithm string) error {
	r := &netlink.Route{
		LinkIndex: e.link.Attrs().Index, Dst: ipNet(e.prefix.Masked()), Scope: netlink.SCOPE_LINK,
		Src: e.prefix.Addr().AsSlice(), Protocol: unix.RTPROT_KERNEL, Congctl: algorithm,
	}
	if err := e.Host.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("pin TCP of %s in host %s to %s: %w", e.Device, e.Host.name, algorithm, err)
	}
	return nil
}

// Cable is a veth pair.
type Cable struct{ A, B *End }

// Cable connects two ports at mbps Mbit/s each way, held by the kernel's token
// bucket with a queue of 20 ms; 0: no limit.
func (l *Lab) Cable(a, b Port, mbps float64) *Cable {
	ends := [2]*End{}
	for i, p := range []Port{a, b} {
		ends[i] = &End{Host: p.Host, Device: fmt.Sprintf("eth%d", p.Host.ports), prefix: p.Prefix}
		p.Host.ports++
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ends[0].Device
	err := a.Host.nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: ends[1].Device, PeerNamespace: netlink.NsFd(b.Host.ns),
	})
	l.must(err, "cable from host %s to %s", a.Host.name, b.Host.name)
	for _, e := range ends {
		e.link, err = e.Host.nl.LinkByName(e.Device)
		l.must(err, "%s of host %s", e.Device, e.Host.name)
		l.configure(e)
		if mbps > 0 {
			l.must(e.tokenBucket(mbps), "limit %s of host %s to %g Mbit/s", e.Device, e.Host.name, mbps)
		}
	}
	return &Cable{A: ends[0], B: ends[1]}
}

func (e *End) tokenBucket(mbps float64) error {
	bytesPerSecond := uint64(mbps * 1e6 / 8)
	// 1 ms of the line and not below a whole offloaded segment of 64 KiB, which
	// would otherwise be dropped.
	burst := max(uint32(bytesPerSecond/1000), 128<<10)
	return e.Host.nl.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: e.link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytesPerSecond,
		Limit:      burst + uint32(bytesPerSecond/50),
		Buffer:     uint32(netlink.TickInUsec() * float64(burst) / float64(bytesPerSecond) * 1e6),
	})
}

// ignoreClosed drops the error of a descriptor that was closed.
func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
