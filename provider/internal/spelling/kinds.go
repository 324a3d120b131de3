package spelling

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// The kinds in use.
type (
	// Version is a Kubernetes version: "1.36.3" or "v1.36.3".
	Version = Value[VersionKind]
	// Duration is a length of time as time.ParseDuration reads it: "60s" or "1m".
	Duration = Value[DurationKind]
	// Quantity is a Kubernetes resource quantity: "500m" or "0.5".
	Quantity = Value[QuantityKind]
)

// VersionKind is the kind of Version.
type VersionKind struct{}

// DurationKind is the kind of Duration.
type DurationKind struct{}

// QuantityKind is the kind of Quantity.
type QuantityKind struct{}

// Name implements Kind.
func (VersionKind) Name() string { return "version" }

// Name implements Kind.
func (DurationKind) Name() string { return "duration" }

// Name implements Kind.
func (QuantityKind) Name() string { return "quantity" }

var versionPattern = regexp.MustCompile(`^v?((?:0|[1-9][0-9]{0,5})\.(?:0|[1-9][0-9]{0,5})\.(?:0|[1-9][0-9]{0,5}))$`)

// Canonical implements Kind: three numbers without a leading v.
func (VersionKind) Canonical(s string) (string, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return "", fmt.Errorf("%q is not a Kubernetes version: write three numbers, like 1.36.3", clip(s))
	}
	return m[1], nil
}

// Canonical implements Kind: as time.Duration writes it. Zero and less is no
// duration here, because every use is a time to wait at most.
func (DurationKind) Canonical(s string) (string, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return "", fmt.Errorf("%q is not a duration: write a number and a unit, like 60s, 5m or 1h30m", clip(s))
	}
	if d <= 0 {
		return "", fmt.Errorf("%q is not a duration: it must be longer than nothing", clip(s))
	}
	return d.String(), nil
}

// maxQuantity is longer than any quantity that means something; parsing far
// longer ones costs time.
const maxQuantity = 64

// Canonical implements Kind: as the API server writes it.
func (QuantityKind) Canonical(s string) (string, error) {
	if len(s) > maxQuantity {
		return "", fmt.Errorf("%q is not a quantity: it is too long", clip(s))
	}
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return "", fmt.Errorf("%q is not a quantity: write one like 500m, 2 or 128Mi", clip(s))
	}
	if q.Sign() < 0 {
		return "", fmt.Errorf("%q is not a quantity a container can ask for: it is below zero", clip(s))
	}
	// Quantities of one amount can still differ in format (0.5Gi, 512Mi), and
	// the API server keeps the format: only the amount counts here.
	amount := q.AsDec().String()
	if strings.Contains(amount, ".") {
		amount = strings.TrimSuffix(strings.TrimRight(amount, "0"), ".")
	}
	return amount, nil
}

// clip keeps a mistaken paste out of messages.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
