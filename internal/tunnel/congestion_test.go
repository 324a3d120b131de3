package tunnel_test

import (
	"strings"
	"testing"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestCongestionIsTolerantByDefault(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		want := tunnel.CongestionTolerant
		if strings.HasSuffix(t.Name(), "/tcp") {
			want = "" // the kernel's
		}
		for _, s := range []tunnel.Session{client, server} {
			if got := tunnel.CongestionOf(s); got != want {
				t.Errorf("congestion control %q, want %q", got, want)
			}
		}
	})
}

func TestCongestionIsChosen(t *testing.T) {
	for _, tc := range []struct {
		c        tunnel.Congestion
		hook, ok bool
	}{{"", true, true}, {tunnel.CongestionTolerant, true, true}, {tunnel.CongestionReno, false, true}, {"bbr", false, false}} {
		conf := &quic.Config{}
		err := tc.c.Set(conf)
		if (err == nil) != tc.ok || (conf.Tracer != nil) != tc.hook {
			t.Errorf("%q: hook %v, %v", tc.c, conf.Tracer != nil, err)
		}
		if tc.ok && conf.DisablePathMTUDiscovery == tc.hook {
			t.Errorf("%q: packets may grow: %v, and may shrink again: %v", tc.c, !conf.DisablePathMTUDiscovery, tc.hook)
		}
	}
}
