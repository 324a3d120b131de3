//go:build linux

package site

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// rules renders the router's whole rule set: out by masquerade, in only what
// answers, and nothing for who is cut. Cuts match on the link to the machine
// only, so that neighbours on the LAN still reach a cut node, and stand before
// the rule for established connections, so that those die too.
func rules(r *record) string {
	var cut []string
	for _, n := range r.Nodes {
		if n.Cut {
			cut = append(cut, n.Address.String())
		}
	}
	slices.Sort(cut)
	var b strings.Builder
	// The first line makes the second one succeed on a router without the table.
	b.WriteString("table ip edge\ndelete table ip edge\ntable ip edge {\n")
	b.WriteString("\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n")
	if r.Cut {
		fmt.Fprintf(&b, "\t\toifname %q drop\n\t\tiifname %q drop\n", routerWAN, routerWAN)
	}
	for _, a := range cut {
		fmt.Fprintf(&b, "\t\toifname %q ip saddr %s drop\n\t\tiifname %q ip daddr %s drop\n", routerWAN, a, routerWAN, a)
	}
	fmt.Fprintf(&b, "\t\tct state established,related accept\n\t\tiifname %q drop\n\t}\n", routerWAN)
	b.WriteString("\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n")
	fmt.Fprintf(&b, "\t\toifname %q masquerade\n\t}\n}\n", routerWAN)
	return b.String()
}

// applyRules loads a rule set inside a namespace, as one transaction.
func applyRules(ctx context.Context, namespace, text string) error {
	return In(namespace, func() error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("nft in %s: %w: %s", namespace, err, strings.TrimSpace(out.String()))
		}
		return nil
	})
}
