package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestReadConnect(t *testing.T) {
	for _, tc := range []struct {
		in, host, prefix string
		code             int
	}{
		{"CONNECT berlin-1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "berlin-1:10250", "", 0},
		{"CONNECT 10.1.2.3:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\x16\x03", "10.1.2.3:443", "\x16\x03", 0},
		{"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n", "[fd00::1]:443", "", 0},
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "", "", 405},
		{"CONNECT berlin-1 HTTP/1.1\r\nHost: x\r\n\r\n", "", "", 400},
		{"CONNECT /path HTTP/1.1\r\nHost: x\r\n\r\n", "", "", 400},
		{"\x16\x03\x01\r\n\r\n", "", "", 400},
		{"CONNECT a:1 HTTP/1.1\r\nX: " + strings.Repeat("a", 5000) + "\r\n\r\n", "", "", 431},
		{"", "", "", -1},
		{"CONNECT a:1 HTTP/1.1\r\nHost:", "", "", -1},
	} {
		host, prefix, err := readConnect(strings.NewReader(tc.in))
		var bad *statusBad
		code := 0
		if errors.As(err, &bad) {
			code = bad.code
		} else if err != nil {
			code = -1
		}
		if host != tc.host || string(prefix) != tc.prefix || code != tc.code {
			t.Errorf("%.40q: %q %q %v", tc.in, host, prefix, err)
		}
		if want := max(tc.code, 0); err != nil && statusOf(err) != want {
			t.Errorf("%.40q: answered with %d, want %d", tc.in, statusOf(err), want)
		}
	}
}

func FuzzReadConnect(f *testing.F) {
	f.Add([]byte("CONNECT berlin-1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nrest"))
	f.Add([]byte("CONNECT [::1]:1 HTTP/1.0\nHost:\n\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		host, prefix, err := readConnect(r)
		used := len(b) - r.Len()
		if used > maxConnect {
			t.Fatalf("read %d bytes", used)
		}
		if err != nil {
			return
		}
		if host == "" || !strings.Contains(host, ":") {
			t.Fatalf("host %q", host)
		}
		if !bytes.HasSuffix(b[:used], prefix) {
			t.Fatalf("prefix %q is not the end of what was read", prefix)
		}
	})
}

func FuzzReadJoin(f *testing.F) {
	f.Add([]byte(`{"token":"t","name":"berlin-1","nodeCSR":"-----BEGIN"}`))
	f.Add([]byte(`{"token":1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var in bytes.Buffer
		if tunnel.WriteFrame(&in, b, 64<<10) != nil {
			return
		}
		req, err := readJoin(&in)
		if (err == nil) != (req.Token != "") {
			t.Fatalf("%+v, %v", req, err)
		}
		if err != nil && err.Error() != errJoinRequest.Error() {
			t.Fatalf("error repeats what was sent: %v", err)
		}
	})
}

func FuzzReadRenewal(f *testing.F) {
	f.Add([]byte(`{"nodeCSR":"-----BEGIN","hubCSR":"-----BEGIN"}`))
	f.Add([]byte(`{"nodeCSR":1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var in bytes.Buffer
		if tunnel.WriteFrame(&in, b, 64<<10) != nil {
			return
		}
		req, err := readRenewal(&in)
		if err == nil && (req.NodeCSR == "" || req.HubCSR == "") {
			t.Fatalf("%+v", req)
		}
		if err != nil && err.Error() != errRenewRequest.Error() {
			t.Fatalf("error repeats what was sent: %v", err)
		}
	})
}

func FuzzRoute(f *testing.F) {
	for _, s := range []string{"berlin-1:10250", "10.1.2.3:80", "[fe80::1%eth0]:80", "[::ffff:10.1.2.3]:80", "x:y:z"} {
		f.Add(s)
	}
	g := &Gateway{cfg: Config{Routes: fuzzRoutes{}}}
	f.Fuzz(func(t *testing.T, s string) {
		rt, err := g.route(s)
		if err == nil && rt.node == "" {
			t.Fatal("routed outside with nothing outside")
		}
		if err == nil && rt.target.kind == tunnel.KindTCP {
			if _, err := (tunnel.Header{Kind: tunnel.KindTCP, Target: rt.target.String()}).Append(nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

type fuzzRoutes struct{}

func (fuzzRoutes) PodOwner(netip.Addr) (string, error) { return "n", nil }
func (fuzzRoutes) HasNode(string) bool                 { return true }

func TestStatusOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{&DialError{"n", Kubelet(), ErrNotConnected}, http.StatusServiceUnavailable},
		{&DialError{"n", Kubelet(), tunnel.ErrStreamLimit}, http.StatusServiceUnavailable},
		{&DialError{"n", Kubelet(), &tunnel.StatusError{Status: tunnel.StatusDraining}}, http.StatusServiceUnavailable},
		{&DialError{"n", Kubelet(), &tunnel.StatusError{Status: tunnel.StatusTimeout}}, http.StatusGatewayTimeout},
		{&DialError{"n", Kubelet(), &tunnel.StatusError{Status: tunnel.StatusRefused}}, http.StatusBadGateway},
		{&DialError{"n", Kubelet(), &tunnel.CloseError{Code: tunnel.CloseRevoked}}, http.StatusBadGateway},
		{fmt.Errorf("x: %w", ErrDraining), http.StatusServiceUnavailable},
		{fmt.Errorf("x: %w: %w", errRoute, ErrAmbiguous), http.StatusBadGateway},
		{io.EOF, 0},
	} {
		if got := statusOf(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestAddrLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newKeyLimiter[netip.Prefix](1, 2, 3)
	take := func(a string) bool { return l.allow(source(netip.MustParseAddr(a)), now) }
	if !take("10.0.0.1") || !take("::ffff:10.0.0.1") || take("::ffff:10.0.0.1") {
		t.Error("burst of an IPv4 address")
	}
	if !take("fd00::1") || !take("fd00::2") || take("fd00::ffff:1") {
		t.Error("burst of an IPv6 /64")
	}
	if !take("fd00:0:0:1::1") {
		t.Error("another /64")
	}
	// Full: strangers share one limiter, and the memory stays bounded.
	if !take("10.0.0.2") || !take("10.0.0.3") || take("10.0.0.4") || len(l.by) != 3 {
		t.Errorf("%d sources", len(l.by))
	}
	now = now.Add(2 * time.Second)
	if !take("10.0.0.4") || len(l.by) != 1 {
		t.Errorf("%d sources after all have refilled", len(l.by))
	}
	if !l.allow(source(netip.Addr{}), now) {
		t.Error("an address that is not known")
	}
}

func TestTargetString(t *testing.T) {
	if s := Kubelet().String() + " " + TCP(netip.MustParseAddrPort("[fd00::1]:80")).String(); s != "kubelet [fd00::1]:80" {
		t.Error(s)
	}
}
