// Package validators checks what a user wrote before anything is planned: names,
// address ranges, ports, labels and taints. Every check is a plain function that
// says what is wrong and what would be right, wrapped for the framework here.
//
// The package never looks at a host or a cluster, and never judges a value that
// is not known yet.
package validators

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/schema/validator"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// String makes a validator of a check. what describes a right value.
func String(what string, check func(string) error) validator.String {
	return stringCheck{what, check}
}

type stringCheck struct {
	what  string
	check func(string) error
}

func (c stringCheck) Description(context.Context) string         { return c.what }
func (c stringCheck) MarkdownDescription(context.Context) string { return c.what }

func (c stringCheck) ValidateString(_ context.Context, req validator.StringRequest, resp *validator.StringResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	if err := c.check(req.ConfigValue.ValueString()); err != nil {
		resp.Diagnostics.AddAttributeError(req.Path, "Must be "+c.what, err.Error())
	}
}

var (
	labelPattern    = regexp.MustCompile(`^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?$`)
	portNamePattern = regexp.MustCompile(`^[a-z0-9](?:-?[a-z0-9])*$`)
	envPattern      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
)

// Label is an RFC 1123 DNS label of at most limit characters.
func Label(limit int) validator.String {
	return String(fmt.Sprintf("a DNS label of at most %d characters", limit), func(s string) error { return CheckLabel(s, limit) })
}

// CheckLabel says why s is no RFC 1123 DNS label of at most limit characters.
func CheckLabel(s string, limit int) error {
	if len(s) > limit || !labelPattern.MatchString(s) {
		return fmt.Errorf("%q: use lower-case letters, digits and '-', beginning and ending with a letter or digit, %d characters at most", clip(s), limit)
	}
	return nil
}

// NodeName is a DNS label of at most limit characters that is not a name of the
// cluster's own servers.
func NodeName(limit int) validator.String {
	return String(fmt.Sprintf("a DNS label of at most %d characters, and no name of the cluster's own", limit), func(s string) error {
		if v1alpha1.ReservedNodeName(s) {
			return fmt.Errorf("%q is a name of the cluster's own servers: choose another", s)
		}
		return CheckLabel(s, limit)
	})
}

// PortName is the name of a port (RFC 6335 service name, as Kubernetes has it).
func PortName() validator.String {
	return String("the name of a port", CheckPortName)
}

// CheckPortName says why s cannot be the name of a port.
func CheckPortName(s string) error {
	if len(s) > 15 || !portNamePattern.MatchString(s) || !strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz") {
		return fmt.Errorf("%q: use lower-case letters, digits and single '-', at least one letter, 15 characters at most", clip(s))
	}
	return nil
}

// EnvName is the name of an environment variable.
func EnvName() validator.String {
	return String("the name of an environment variable", func(s string) error {
		if !envPattern.MatchString(s) {
			return fmt.Errorf("%q: use letters, digits, '_', '-' and '.', not beginning with a digit", clip(s))
		}
		return nil
	})
}

// CIDR is an IPv4 address range in its one spelling.
func CIDR() validator.String {
	return String("an IPv4 range in CIDR notation", func(s string) error { _, err := ParseCIDR(s); return err })
}

// ParseCIDR reads an IPv4 range without host bits.
func ParseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: write an address and a length, like 10.64.0.0/16", clip(s))
	}
	if !p.Addr().Is4() {
		return p, fmt.Errorf("%q: IPv6 ranges cannot be used yet", clip(s))
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q: address bits are set beyond the length; the range that holds it is %s", clip(s), p.Masked())
	}
	return p, nil
}

// Domain is a DNS domain such as cluster.local.
func Domain() validator.String { return String("a DNS domain", CheckDomain) }

// maxDomain leaves room for the names of services and namespaces before it
// (RFC 1035 allows 253 characters in all).
const maxDomain = 120

// CheckDomain says why s is no DNS domain in lower case.
func CheckDomain(s string) error {
	if len(s) > maxDomain {
		return fmt.Errorf("%q: %d characters at most", clip(s), maxDomain)
	}
	for label := range strings.SplitSeq(s, ".") {
		if CheckLabel(label, 63) != nil {
			return fmt.Errorf("%q: write labels of lower-case letters, digits and '-' with dots between them, like cluster.local", clip(s))
		}
	}
	return nil
}

// ImageReference is the name of a container image.
func ImageReference() validator.String {
	return String("the name of an image", func(s string) error {
		if s == "" || len(s) > 1024 || strings.TrimSpace(s) != s || strings.ContainsAny(s, " \t\r\n") {
			return fmt.Errorf("%q: write a name without spaces, like registry.example.com/app:1.0", clip(s))
		}
		return nil
	})
}

// TargetPort is a port number or the name of a container's port.
func TargetPort() validator.String {
	return String("a port number or the name of a container's port", func(s string) error {
		if strings.Trim(s, "0123456789") != "" {
			return CheckPortName(s)
		}
		var n int
		if _, err := fmt.Sscanf(s, "%d", &n); err != nil || len(s) > 5 || n < 1 || n > 65535 || s[0] == '0' {
			return fmt.Errorf("%q: a port is a number from 1 to 65535", clip(s))
		}
		return nil
	})
}

// clusterIDPattern is <placement>/<name>-<uid8>[@seed].
var clusterIDPattern = regexp.MustCompile(`^[a-z]+/[a-z0-9](?:[a-z0-9-]*[a-z0-9])?-[0-9a-f]{8}(?:@[^/\s]+)?$`)

// maxClusterID keeps a mistaken paste from being matched at all.
const maxClusterID = 512

// ClusterID is the id of a cluster.
func ClusterID() validator.String {
	return String("the id of a cluster", CheckClusterID)
}

// CheckClusterID says why s is not the id of a cluster.
func CheckClusterID(s string) error {
	if len(s) > maxClusterID || !clusterIDPattern.MatchString(s) {
		return fmt.Errorf("%q: an id looks like local/quickstart-1f2e3d4c; write edge_cluster.<name>.id", clip(s))
	}
	return nil
}

// DurationBetween is a duration within bounds.
func DurationBetween(least, most time.Duration) validator.String {
	what := fmt.Sprintf("a duration from %s to %s", least, most)
	return String(what, func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil {
			return nil // the attribute's type says so
		}
		if d < least || d > most {
			return fmt.Errorf("%s is not %s", clip(s), what)
		}
		return nil
	})
}
