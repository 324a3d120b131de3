package gateway_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

type renewFunc func(context.Context, string, *x509.Certificate, enroll.RenewRequest, netip.AddrPort) enroll.Response

func (f renewFunc) Renew(ctx context.Context, node string, leaf *x509.Certificate, r enroll.RenewRequest, remote netip.AddrPort) enroll.Response {
	return f(ctx, node, leaf, r, remote)
}

func (l *lab) renewConfig(cert *tls.Certificate) agent.RenewConfig {
	return agent.RenewConfig{
		Gateways: []string{gatewayAddr.String()}, RootCAs: l.ca.Pool, Certificate: tunneltest.Source(cert),
		ListenPacket: func() (net.PacketConn, error) { return l.net.Listen(netipAddr("10.0.7.7:0")), nil },
		DialStream:   l.dialStream(netip.MustParseAddr("10.0.7.7")),
	}
}

// ended is a node's certificate that ended some time ago.
func (l *lab) ended(t *testing.T, node string, ago time.Duration) *tls.Certificate {
	return l.ca.Client(t, "system:node:"+node, "system:nodes", time.Now().Add(-ago))
}

func TestRenew(t *testing.T) {
	want := enroll.RenewRequest{NodeCSR: strings.Repeat("n", 20<<10), HubCSR: "h"}
	answer := enroll.Response{NodeCertificate: "new", HubCertificate: "new too"}
	var asked int
	inLab(t, func(_ *lab, c *gateway.Config) {
		c.Renewer = renewFunc(func(_ context.Context, node string, leaf *x509.Certificate, r enroll.RenewRequest, remote netip.AddrPort) enroll.Response {
			asked++
			if node != "berlin-1" || leaf.Subject.CommonName != "system:node:berlin-1" || remote.Addr().String() != "10.0.7.7" {
				t.Errorf("asked by %s with %s from %s", node, leaf.Subject, remote)
			}
			if d := cmp.Diff(want, r); d != "" {
				t.Error(d)
			}
			return answer
		})
	}, func(t *testing.T, l *lab) {
		for name, cert := range map[string]*tls.Certificate{
			"expired": l.ended(t, "berlin-1", time.Minute), "not expired": l.ca.Node(t, "berlin-1"),
		} {
			for _, transport := range []agent.Transport{agent.QUIC, agent.TCP} {
				cfg := l.renewConfig(cert)
				cfg.Transport = transport
				got, err := agent.Renew(t.Context(), cfg, want)
				if err != nil {
					t.Fatalf("%s, over %s: %v", name, transport, err)
				}
				if d := cmp.Diff(answer, got); d != "" {
					t.Error(d)
				}
			}
		}
		answer = enroll.Response{Error: &enroll.RemoteError{Code: enroll.CodeRevoked, Message: "revoked"}}
		_, err := agent.Renew(t.Context(), l.renewConfig(l.ended(t, "berlin-1", time.Minute)), want)
		if refused, ok := errors.AsType[*enroll.RemoteError](err); !ok || refused.Code != enroll.CodeRevoked {
			t.Errorf("error: %v", err)
		}
		if asked != 5 || !strings.Contains(l.logs.String(), "msg=renewal") || !strings.Contains(l.logs.String(), "node=berlin-1") {
			t.Errorf("asked %d times; log: %s", asked, l.logs.String())
		}
	})
}

func TestWhoMayRenew(t *testing.T) {
	for name, tc := range map[string]struct {
		cert func(t *testing.T, l *lab) *tls.Certificate
		says string
		late time.Duration // of the gateway's clock
	}{
		"revoked": {func(t *testing.T, l *lab) *tls.Certificate {
			l.deny("berlin-1", errors.New("its key was revoked"))
			return l.ended(t, "berlin-1", time.Minute)
		}, "its key was revoked", 0},
		"ended too long ago": {func(t *testing.T, l *lab) *tls.Certificate {
			return l.ended(t, "berlin-1", time.Minute)
		}, "join it again", enroll.RenewWindow},
		"of another CA": {func(t *testing.T, l *lab) *tls.Certificate {
			return tunneltest.NewCA(t).Client(t, "system:node:berlin-1", "system:nodes", time.Now().Add(-time.Minute))
		}, "unknown authority", 0},
		"tampered": {func(t *testing.T, l *lab) *tls.Certificate {
			// Another end: what the CA signed is not what is shown.
			cert := l.ended(t, "berlin-1", time.Minute)
			raw := append([]byte(nil), cert.Certificate[0]...)
			at := strings.Index(string(raw), cert.Leaf.NotAfter.UTC().Format("0601021504"))
			if at < 0 {
				t.Fatal("no end in the certificate")
			}
			raw[at+9] ^= 1
			return &tls.Certificate{Certificate: [][]byte{raw, l.ca.Cert.Raw}, PrivateKey: cert.PrivateKey}
		}, "client certificate", 0},
		"not a node's": {func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "edge:hub:berlin-1", "system:nodes", time.Now().Add(-time.Minute))
		}, "is not a node's", 0},
		"a server's": {func(t *testing.T, l *lab) *tls.Certificate {
			cert := l.ca.Gateway(t, "x")
			return cert
		}, "is not a node's", 0},
		"other organization": {func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "system:node:berlin-1", "system:masters", time.Now().Add(-time.Minute))
		}, "has organizations", 0},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, func(_ *lab, c *gateway.Config) {
				c.Renewer = renewFunc(func(context.Context, string, *x509.Certificate, enroll.RenewRequest, netip.AddrPort) enroll.Response {
					t.Error("the renewer was asked")
					return enroll.Response{}
				})
				c.Clock = func() time.Time { return time.Now().Add(tc.late) }
			}, func(t *testing.T, l *lab) {
				cert := tc.cert(t, l)
				_, err := agent.Renew(t.Context(), l.renewConfig(cert), enroll.RenewRequest{NodeCSR: "n", HubCSR: "h"})
				closed, ok := errors.AsType[*tunnel.CloseError](err)
				if !ok || closed.Code != tunnel.CloseDenied || !strings.Contains(closed.Reason, tc.says) {
					t.Errorf("error: %v, want denied with %q", err, tc.says)
				}
			})
		})
	}
}

// A key that the client does not hold renews nothing, and an ended certificate
// opens nothing but a renewal.
func TestEndedCertificateDoesNothingElse(t *testing.T) {
	inLab(t, func(_ *lab, c *gateway.Config) {
		c.Renewer = renewFunc(func(context.Context, string, *x509.Certificate, enroll.RenewRequest, netip.AddrPort) enroll.Response {
			t.Error("the renewer was asked")
			return enroll.Response{}
		})
	}, func(t *testing.T, l *lab) {
		cert := l.ended(t, "berlin-1", time.Minute)
		stolen := &tls.Certificate{Certificate: cert.Certificate, PrivateKey: l.ca.Node(t, "x").PrivateKey.(*ecdsa.PrivateKey)}
		if _, err := agent.Renew(t.Context(), l.renewConfig(stolen), enroll.RenewRequest{NodeCSR: "n", HubCSR: "h"}); err == nil {
			t.Error("renewed with another key")
		}
		n := l.join("berlin-1", nil, func(c *agent.Config) { c.Certificate = tunneltest.Source(cert) })
		<-time.After(time.Minute)
		if _, up := n.Connected(); up {
			t.Error("a session with an ended certificate")
		}
	})
}
