package validators

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

// CheckLabelKey says why key cannot be the key of a label, annotation or taint.
func CheckLabelKey(key string) error {
	if msgs := content.IsLabelKey(key); len(msgs) > 0 {
		return fmt.Errorf("key %q: %s", clip(key), strings.Join(msgs, "; "))
	}
	return nil
}

// CheckLabelValue says why value cannot be the value of a label or taint.
func CheckLabelValue(value string) error {
	if msgs := content.IsLabelValue(value); len(msgs) > 0 {
		return fmt.Errorf("value %q: %s", clip(value), strings.Join(msgs, "; "))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// reservedDomain holds the labels and annotations that the project's own
// controllers write; membership of a pool is one of them.
const reservedDomain = "edgewright.dev"

// CheckOwnKey is CheckLabelKey for keys that a user puts on nodes or pods: those
// of the project's own domain are refused.
func CheckOwnKey(key string) error {
	if err := CheckLabelKey(key); err != nil {
		return err
	}
	domain, _, ok := strings.Cut(key, "/")
	if ok && (domain == reservedDomain || strings.HasSuffix(domain, "."+reservedDomain)) {
		return fmt.Errorf("key %q: keys under %s are written by the cluster's own controllers", key, reservedDomain)
	}
	return nil
}
