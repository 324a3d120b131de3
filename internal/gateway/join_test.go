package gateway_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

func netipAddr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

type enrollFunc func(context.Context, enroll.Request, netip.AddrPort) enroll.Response

func (f enrollFunc) Enroll(ctx context.Context, r enroll.Request, remote netip.AddrPort) enroll.Response {
	return f(ctx, r, remote)
}

// secret is not a join token; no log line may hold it.
const secret = "edge1.0a1b2c3d.not-to-be-logged"

func (l *lab) enrollConfig() agent.EnrollConfig {
	return agent.EnrollConfig{
		Gateways: []string{gatewayAddr.String()}, CAPin: l.ca.Pin(),
		ListenPacket: func() (net.PacketConn, error) { return l.net.Listen(netipAddr("10.0.7.7:0")), nil },
		DialStream:   l.dialStream(netip.MustParseAddr("10.0.7.7")),
	}
}

func TestJoin(t *testing.T) {
	var got enroll.Request
	var answer enroll.Response
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Enroller = enrollFunc(func(ctx context.Context, r enroll.Request, remote netip.AddrPort) enroll.Response {
			if remote.Addr().String() != "10.0.7.7" {
				t.Errorf("remote %s", remote)
			}
			if dl, ok := ctx.Deadline(); !ok || time.Until(dl) > time.Minute {
				t.Errorf("deadline %s, %v", dl, ok)
			}
			got = r
			return answer
		})
	}, func(t *testing.T, l *lab) {
		answer = enroll.Response{NodeCertificate: strings.Repeat("c", 30<<10), CACertificate: l.ca.PEM(), Pool: "berlin"}
		req := enroll.Request{Token: secret, Name: "berlin-1", NodeCSR: strings.Repeat("r", 20<<10)}
		resp, err := agent.Enroll(t.Context(), l.enrollConfig(), req)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(answer, resp) + cmp.Diff(req, got); d != "" {
			t.Error(d)
		}
		// The CA known from elsewhere, in place of the pin.
		cfg := l.enrollConfig()
		cfg.CAPin, cfg.RootCAs = "", l.ca.Pool
		if _, err := agent.Enroll(t.Context(), cfg, req); err != nil {
			t.Error(err)
		}
		// Refused: the reason arrives and no other gateway is asked.
		answer = enroll.Response{Error: &enroll.RemoteError{Code: enroll.CodeTokenUsed, Message: "the token was used"}}
		_, err = agent.Enroll(t.Context(), l.enrollConfig(), req)
		re, ok := errors.AsType[*enroll.RemoteError](err)
		if !ok || re.Code != enroll.CodeTokenUsed {
			t.Errorf("error: %v", err)
		}
		// An answer with another CA than the pinned one is not believed.
		answer = enroll.Response{CACertificate: tunneltest.NewCA(t).PEM()}
		if _, err := agent.Enroll(t.Context(), l.enrollConfig(), req); !errors.Is(err, agent.ErrPin) {
			t.Errorf("error: %v", err)
		}
		answer = enroll.Response{}
		if _, err := agent.Enroll(t.Context(), l.enrollConfig(), req); !errors.Is(err, agent.ErrPin) {
			t.Errorf("error: %v", err)
		}
		// Too large: refused before anything is sent.
		if _, err := agent.Enroll(t.Context(), l.enrollConfig(), enroll.Request{Token: secret, Name: strings.Repeat("n", 64<<10)}); err == nil || !strings.Contains(err.Error(), "are allowed") {
			t.Errorf("error: %v", err)
		}
		if strings.Contains(l.logs.String(), secret) {
			t.Error("the token is in the log")
		}
	})
}

// The token must not leave the device before the gateway has proven itself.
func TestJoinPinMismatch(t *testing.T) {
	var asked atomic.Int32
	for name, tc := range map[string]struct {
		cert func(t *testing.T, ca, other *tunneltest.CA) *tls.Certificate
		pin  func(ca, other *tunneltest.CA) string
	}{
		"pin of another CA": {
			func(t *testing.T, ca, _ *tunneltest.CA) *tls.Certificate { return ca.Gateway(t, tunnel.ServerName) },
			func(_, other *tunneltest.CA) string { return other.Pin() },
		},
		"shows the pinned CA but is not signed by it": {
			func(t *testing.T, ca, other *tunneltest.CA) *tls.Certificate {
				c := other.Gateway(t, tunnel.ServerName)
				c.Certificate = [][]byte{c.Certificate[0], ca.Cert.Raw}
				return c
			},
			func(ca, _ *tunneltest.CA) string { return ca.Pin() },
		},
		"a node's name": {
			func(t *testing.T, ca, _ *tunneltest.CA) *tls.Certificate { return ca.Gateway(t, "berlin-1") },
			func(ca, _ *tunneltest.CA) string { return ca.Pin() },
		},
		"a client certificate": {
			func(t *testing.T, ca, _ *tunneltest.CA) *tls.Certificate { return ca.Node(t, "berlin-1") },
			func(ca, _ *tunneltest.CA) string { return ca.Pin() },
		},
		"no CA in the chain": {
			func(t *testing.T, ca, _ *tunneltest.CA) *tls.Certificate {
				c := ca.Gateway(t, tunnel.ServerName)
				c.Certificate = c.Certificate[:1]
				return c
			},
			func(ca, _ *tunneltest.CA) string { return ca.Pin() },
		},
		"empty-handed pin": {
			func(t *testing.T, ca, _ *tunneltest.CA) *tls.Certificate { return ca.Gateway(t, tunnel.ServerName) },
			func(_, _ *tunneltest.CA) string { return strings.Repeat("0", 32) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			var pin string
			inLab(t, func(l *lab, c *gateway.Config) {
				other := tunneltest.NewCA(t)
				pin = tc.pin(l.ca, other)
				c.Certificate = tunneltest.Source(tc.cert(t, l.ca, other))
				c.Enroller = enrollFunc(func(context.Context, enroll.Request, netip.AddrPort) enroll.Response {
					asked.Add(1)
					return enroll.Response{}
				})
			}, func(t *testing.T, l *lab) {
				cfg := l.enrollConfig()
				cfg.CAPin = pin
				_, err := agent.Enroll(t.Context(), cfg, enroll.Request{Token: secret, Name: "berlin-1"})
				if !errors.Is(err, agent.ErrPin) {
					t.Errorf("error: %v", err)
				}
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Error("the token is in the error")
				}
			})
		})
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the token was sent %d times", n)
	}
}

func TestJoinLimits(t *testing.T) {
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Enroller = enrollFunc(func(context.Context, enroll.Request, netip.AddrPort) enroll.Response {
			return enroll.Response{Error: &enroll.RemoteError{Code: enroll.CodeTokenInvalid, Message: "no such token"}}
		})
	}, func(t *testing.T, l *lab) {
		limited := 0
		for range 60 {
			_, err := agent.Enroll(t.Context(), l.enrollConfig(), enroll.Request{Token: secret})
			if errors.Is(err, agent.ErrRateLimited) {
				limited++
			}
		}
		// 20 at once and one a second after that; a try takes 20 ms.
		if limited < 30 {
			t.Errorf("%d of 60 were limited", limited)
		}
		cfg := l.enrollConfig()
		cfg.ListenPacket = func() (net.PacketConn, error) { return l.net.Listen(netipAddr("10.0.8.8:0")), nil }
		cfg.DialStream = l.dialStream(netip.MustParseAddr("10.0.8.8"))
		if _, err := agent.Enroll(t.Context(), cfg, enroll.Request{Token: secret}); errors.Is(err, agent.ErrRateLimited) {
			t.Error("another address was limited too")
		}
	})
	// Nobody takes joins here.
	inLab(t, nil, func(t *testing.T, l *lab) {
		_, err := agent.Enroll(t.Context(), l.enrollConfig(), enroll.Request{Token: secret})
		if err == nil || !strings.Contains(err.Error(), "takes no new devices") {
			t.Errorf("error: %v", err)
		}
	})
	// A gateway that is not there: bounded, and the next one is asked.
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Enroller = enrollFunc(func(context.Context, enroll.Request, netip.AddrPort) enroll.Response {
			return enroll.Response{Error: &enroll.RemoteError{Code: enroll.CodeInternal, Message: "x"}}
		})
	}, func(t *testing.T, l *lab) {
		cfg := l.enrollConfig()
		cfg.Gateways = []string{"10.0.99.99:1", gatewayAddr.String()}
		start := time.Now()
		_, err := agent.Enroll(t.Context(), cfg, enroll.Request{Token: secret})
		if re, ok := errors.AsType[*enroll.RemoteError](err); !ok || re.Code != enroll.CodeInternal || time.Since(start) > 15*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// Raw bytes on a join connection.
func TestJoinProtocolErrors(t *testing.T) {
	for name, raw := range map[string]string{
		"too long":  "\x00\x01\x00\x01",
		"not JSON":  "\x00\x00\x00\x03abc",
		"no token":  "\x00\x00\x00\x02{}",
		"cut short": "\x00\x00\x00\x05{}",
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, func(l *lab, c *gateway.Config) {
				c.Enroller = enrollFunc(func(context.Context, enroll.Request, netip.AddrPort) enroll.Response {
					t.Error("it was asked")
					return enroll.Response{}
				})
			}, func(t *testing.T, l *lab) {
				pc := l.net.Listen(netipAddr("10.0.7.7:0"))
				tr := &quic.Transport{Conn: pc}
				qc, err := tr.Dial(t.Context(), net.UDPAddrFromAddrPort(gatewayAddr), &tls.Config{
					NextProtos: []string{tunnel.JoinALPN}, ServerName: tunnel.ServerName, RootCAs: l.ca.Pool,
				}, tunnel.AgentConfig())
				if err != nil {
					t.Fatal(err)
				}
				st, err := qc.OpenStream()
				if err != nil {
					t.Fatal(err)
				}
				st.Write([]byte(raw))
				st.Close()
				<-qc.Context().Done()
				var ae *quic.ApplicationError
				if err := context.Cause(qc.Context()); !errors.As(err, &ae) || tunnel.CloseCode(ae.ErrorCode) != tunnel.CloseProtocol {
					t.Errorf("closed with %v", err)
				}
				tr.Close()
				pc.Close()
			})
		})
	}
}

func TestALPNAgree(t *testing.T) {
	if tunnel.JoinALPN != enroll.ALPN {
		t.Errorf("%q and %q", tunnel.JoinALPN, enroll.ALPN)
	}
}

// A stranger who opens more than the one stream of a join or a renewal is cut: all
// of them could make the gateway hold what a node may.
func TestStrangersHaveOneStream(t *testing.T) {
	for _, protocol := range []string{tunnel.JoinALPN, tunnel.RenewALPN} {
		t.Run(protocol, func(t *testing.T) {
			inLab(t, func(_ *lab, c *gateway.Config) {
				c.Enroller = enrollFunc(func(context.Context, enroll.Request, netip.AddrPort) enroll.Response { return enroll.Response{} })
				c.Renewer = renewFunc(func(context.Context, string, *x509.Certificate, enroll.RenewRequest, netip.AddrPort) enroll.Response {
					return enroll.Response{}
				})
			}, func(t *testing.T, l *lab) {
				pc := l.net.Listen(netipAddr("10.0.7.7:0"))
				tr := &quic.Transport{Conn: pc}
				defer func() { tr.Close(); pc.Close() }()
				qc, err := tr.Dial(t.Context(), net.UDPAddrFromAddrPort(gatewayAddr), &tls.Config{
					NextProtos: []string{protocol}, ServerName: tunnel.ServerName, RootCAs: l.ca.Pool,
					Certificates: []tls.Certificate{*l.ended(t, "berlin-1", time.Minute)},
				}, tunnel.AgentConfig())
				if err != nil {
					t.Fatal(err)
				}
				defer qc.CloseWithError(0, "")
				for i := range 2 {
					st, err := qc.OpenStream()
					if err != nil {
						t.Fatal(err)
					}
					st.Write([]byte{0}) // of a length
					settle()
					if over := qc.Context().Err() != nil; over != (i == 1) {
						t.Errorf("after stream %d: %v", i, context.Cause(qc.Context()))
					}
				}
				var ae *quic.ApplicationError
				if err := context.Cause(qc.Context()); !errors.As(err, &ae) || tunnel.CloseCode(ae.ErrorCode) != tunnel.CloseProtocol || !strings.Contains(ae.ErrorMessage, "one stream") {
					t.Errorf("closed with %v", err)
				}
			})
		})
	}
}
