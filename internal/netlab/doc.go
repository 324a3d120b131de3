// Package netlab makes small networks for tests and benchmarks: hosts, each a
// network namespace, and links between them whose rate, queue, delay, jitter and
// loss can be set, seeded and changed while traffic flows.
//
//	lab := netlab.ForTest(t, 1)                     // skips without root or TUN
//	cloud, edge := lab.Host("cloud"), lab.Host("edge")
//	link := lab.Link(
//		netlab.Port{Host: cloud, Prefix: netip.MustParsePrefix("10.77.0.1/24")},
//		netlab.Port{Host: edge, Prefix: netip.MustParsePrefix("10.77.0.2/24")},
//		netlab.WAN(50, 60*time.Millisecond))
//	pc, err := cloud.ListenUDP(netip.MustParseAddrPort("10.77.0.1:443"))
//	...
//	link.Cut()                                      // nothing passes
//	link.AToB.SetCut(true)                          // one way only
//	link.SetUDPBlocked(true)
//	link.B.Readdress(netip.MustParsePrefix("10.77.0.4/24"))
//	link.Restore()                                  // undoes cuts and blocks
//	link.SetShape(link.AToB.Shape().WithMTU(1400))  // what is larger is lost, unsaid
//
// A link is two TUN devices and a pump each way:
//
//	host A                        this process                       host B
//	+------+  IP packets  +----------------------------+            +------+
//	| tun0 | ===========> | loss -> line and its queue | =========> | tun0 |
//	+------+              | -> delay and jitter        |            +------+
//	                      +----------------------------+
//
// It works on IP packets, so that TCP sees the same loss as UDP; a proxy could
// not lose a TCP segment. Packets of a link with jitter overtake each other. The
// same seed drops the same packets, counted from the first of a direction; when
// they come is up to the kernel, so that runs are alike and not identical.
//
// A Cable is the other kind of connection: a veth pair under the kernel's token
// bucket, for rates that a pump does not reach (above some 300 Mbit/s), without
// delay or loss.
//
// Nothing is left behind, however a process ends: namespaces have no names and
// devices no persistence, both live as long as the descriptors that hold them.
// Processes started with Host.Start get SIGKILL when this one dies; only what
// those have started themselves could outlive it, and holds its namespace then.
//
// It needs Linux, root and /dev/net/tun, touches nothing outside the namespaces
// it made, and is never part of a daemon.
package netlab
