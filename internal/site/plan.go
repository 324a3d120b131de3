package site

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
)

// The address plan of a site.
var (
	// wanRange is where a site's link to this machine gets its /30 from: the
	// range RFC 2544 set aside for benchmarks, which no real network routes.
	wanRange = netip.MustParsePrefix("198.18.0.0/15")
	// lanRange is the LAN of every site: what most real routers come with.
	lanRange = netip.MustParsePrefix("192.168.1.0/24")
	// lanRouter is the router's address on the LAN.
	lanRouter = netip.MustParseAddr("192.168.1.1")
)

const (
	// wanBits is the prefix length of a site's link: two usable addresses.
	wanBits = 30
	// lanFirst is the last octet of the first node: the addresses below it are
	// left to what else is usually on a LAN.
	lanFirst = 11
	// lanLast is the last octet a node may get.
	lanLast = 254
	// specificBits is from where on a route of this machine counts as somebody's
	// network when the whole range is covered by a wider one (a VPN that takes
	// all of 198.18.0.0/15): our /30 is more specific than that one and wins.
	specificBits = 24
)

// wanLinks is how many /30 there are in wanRange.
const wanLinks = 1 << (wanBits - 15)

// hostAddr is the machine's end of a link: what the site's nodes dial.
func hostAddr(wan netip.Prefix) netip.Addr { return wan.Masked().Addr().Next() }

// routerAddr is the router's end of a link.
func routerAddr(wan netip.Prefix) netip.Addr { return hostAddr(wan).Next() }

// chooseWAN picks the link of a site: the same one each time for the same
// cluster and pool, the next free one where that is taken. used are the
// networks this machine routes or that other sites remember.
func chooseWAN(clusterUID, pool string, used []netip.Prefix) (netip.Prefix, error) {
	sum := sha256.Sum256([]byte(clusterUID + "/" + pool))
	first := binary.BigEndian.Uint32(sum[:4]) % wanLinks
	for _, minBits := range []int{1, specificBits} {
		for i := range uint32(wanLinks) {
			link := wanLink((first + i) % wanLinks)
			if free(link, used, minBits) {
				return link, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("no /%d of %s is free among this machine's routes", wanBits, wanRange)
}

// wanLink is the i-th /30 of wanRange.
func wanLink(i uint32) netip.Prefix {
	base := wanRange.Addr().As4()
	n := binary.BigEndian.Uint32(base[:]) + i*4
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], n)
	return netip.PrefixFrom(netip.AddrFrom4(a), wanBits)
}

// free says whether no prefix of at least minBits overlaps link. A default
// route (0 bits) never counts.
func free(link netip.Prefix, used []netip.Prefix, minBits int) bool {
	for _, p := range used {
		if p.Bits() >= minBits && p.Overlaps(link) {
			return false
		}
	}
	return true
}

// chooseLAN picks a node's address on the LAN: the lowest one no other node of
// the site has.
func chooseLAN(taken map[netip.Addr]bool) (netip.Addr, error) {
	a := lanRange.Addr().As4()
	for i := lanFirst; i <= lanLast; i++ {
		a[3] = byte(i)
		if addr := netip.AddrFrom4(a); !taken[addr] {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all %d node addresses of %s are taken", lanLast-lanFirst+1, lanRange)
}

var (
	uidForm  = regexp.MustCompile(`^[0-9a-f]{8}$`)
	nameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// checkNames refuses what could lead a derived name outside of its pattern.
func checkNames(clusterUID string, names ...string) error {
	if !uidForm.MatchString(clusterUID) {
		return fmt.Errorf("cluster uid %q is not 8 lower hex characters", clusterUID)
	}
	for _, n := range names {
		if !nameForm.MatchString(n) {
			return fmt.Errorf("name %q is not a DNS label", n)
		}
	}
	return nil
}

// RouterNamespace is the name of a site's router namespace.
func RouterNamespace(clusterUID, pool string) string { return "edge-" + clusterUID + "-r-" + pool }

// NodeNamespace is the name of a node's network namespace.
func NodeNamespace(clusterUID, node string) string { return "edge-" + clusterUID + "-n-" + node }

// wanLinkName is the machine's end of a site's link. Interface names hold at
// most 15 characters, so it is a hash of what it belongs to.
func wanLinkName(clusterUID, pool string) string { return "ew" + shortHash(clusterUID+"/r/"+pool) }

// lanPortName is a node's port on the router's bridge.
func lanPortName(clusterUID, node string) string { return "en" + shortHash(clusterUID+"/n/"+node) }

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:11]
}
