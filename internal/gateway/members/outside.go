package members

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/edgewright/terraform-provider-edge/internal/gateway"
)

// Outside returns a gateway's DialLocal: addresses that are neither loopback nor
// of this link, and of none of the cluster's own ranges, where only a node or a
// service is. Names are not dialled: those the apiserver uses are nodes'.
func Outside(own []netip.Prefix) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, fmt.Errorf("%s: no edge node has this name: %w", addr, gateway.ErrNoRoute)
		}
		if err := outside(ap.Addr(), own); err != nil {
			return nil, fmt.Errorf("%s: %w", addr, err)
		}
		// Once more where it counts, whatever the dialer made of it.
		d := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return outside(ap.Addr(), own)
		}}
		return d.DialContext(ctx, network, ap.String())
	}
}

// outside refuses addresses that a gateway must not be aimed at.
func outside(a netip.Addr, own []netip.Prefix) error {
	a = a.Unmap()
	if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return fmt.Errorf("an address of this machine or link is not dialled: %w", gateway.ErrNoRoute)
	}
	for _, p := range own {
		if p.Contains(a) {
			return fmt.Errorf("it is in the cluster's range %s and no node or service has it: %w", p, gateway.ErrNoRoute)
		}
	}
	return nil
}
