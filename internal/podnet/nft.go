package podnet

import (
	"fmt"
	"net/netip"
	"strings"
)

// rules is what the nftables table depends on.
type rules struct {
	// pods are the node's own pod ranges; unmasked are where their addresses
	// are valid.
	pods, unmasked []netip.Prefix
	// addresses are the node's own link-local ones.
	addresses []netip.Addr
	// hairpin: packets between pods of the bridge do not pass netfilter, so the
	// answer to a Service's translated packet has to be made to.
	hairpin bool
}

// ruleset returns what `nft -f -` is fed: the whole table, replaced in one
// transaction whatever was there.
//
//	postrouting  pods' packets to where pod addresses mean nothing leave as the
//	             node's own
//	input        DNS and the API for pods are for this node only: a neighbour on
//	             the LAN that sends to the link-local addresses is not heard
func (r rules) ruleset() string {
	var b strings.Builder
	// add makes the delete work where there is no table yet.
	fmt.Fprintf(&b, "add table inet %[1]s\ndelete table inet %[1]s\ntable inet %[1]s {\n", Table)
	b.WriteString("\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n")
	if r.hairpin {
		for _, p := range r.pods {
			fmt.Fprintf(&b, "\t\t%[1]s saddr %[2]s %[1]s daddr %[2]s ct status dnat masquerade fully-random\n", family(p.Addr()), p)
		}
	}
	for _, p := range r.unmasked {
		fmt.Fprintf(&b, "\t\t%s daddr %s return\n", family(p.Addr()), p)
	}
	for _, a := range r.addresses {
		fmt.Fprintf(&b, "\t\t%s daddr %s return\n", family(a), a)
	}
	for _, p := range r.pods {
		fmt.Fprintf(&b, "\t\t%s saddr %s masquerade fully-random\n", family(p.Addr()), p)
	}
	b.WriteString("\t}\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n")
	for _, a := range r.addresses {
		fmt.Fprintf(&b, "\t\tiifname != { \"lo\", %q } %s daddr %s drop\n", Bridge, family(a), a)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// family is an address's keyword in nftables.
func family(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}
