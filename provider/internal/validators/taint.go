package validators

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ParseTaint reads "key=value:Effect" or "key:Effect", each taint in its one
// spelling (corev1.Taint's own), so that equal sets are equal texts.
func ParseTaint(s string) (corev1.Taint, error) {
	bad := func(why string) (corev1.Taint, error) {
		if len(s) > 400 {
			s = s[:400] + "…"
		}
		return corev1.Taint{}, fmt.Errorf("%q is not a taint: %s; write key=value:Effect or key:Effect, where Effect is NoSchedule, PreferNoSchedule or NoExecute", s, why)
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return bad("it has no effect")
	}
	t := corev1.Taint{Effect: corev1.TaintEffect(s[i+1:])}
	switch t.Effect {
	case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
	default:
		return bad(fmt.Sprintf("%q is no effect", s[i+1:]))
	}
	key, value, hasValue := strings.Cut(s[:i], "=")
	if hasValue && value == "" {
		return bad("leave out the = where there is no value")
	}
	if err := CheckLabelKey(key); err != nil {
		return bad(err.Error())
	}
	if err := CheckLabelValue(value); err != nil {
		return bad(err.Error())
	}
	t.Key, t.Value = key, value
	return t, nil
}
