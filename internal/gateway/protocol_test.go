package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// A session's client may not send what an agent does not.
func TestProtocolErrors(t *testing.T) {
	for _, tc := range []struct {
		name  string
		after []byte // on the control stream, after a good HELLO unless first
		first bool
		code  tunnel.CloseCode
	}{
		{"no HELLO", message(t, tunnel.Ping{}), true, tunnel.CloseProtocol},
		{"garbage", []byte("GET / HTTP/1.1\r\n\r\n"), true, tunnel.CloseProtocol},
		{"version 0", message(t, tunnel.Hello{Node: "berlin-1"}), true, tunnel.CloseProtocol},
		{"unknown odd type", []byte{0x09, 0x00}, false, tunnel.CloseProtocol},
		{"HELLO twice", message(t, tunnel.Hello{Version: 1, Node: "berlin-1"}), false, tunnel.CloseProtocol},
		{"silence", nil, true, tunnel.CloseProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inLab(t, nil, func(t *testing.T, l *lab) {
				qc, done := l.rawNode("berlin-1")
				defer done()
				st, err := qc.OpenStream()
				if err != nil {
					t.Fatal(err)
				}
				if !tc.first {
					st.Write(message(t, tunnel.Hello{Version: 1, Node: "berlin-1"}))
					l.await("berlin-1 true")
				}
				// An unknown even message before it is no harm.
				st.Write(append([]byte{0x40, 0x40, 0x01, 'x'}, tc.after...))
				<-qc.Context().Done()
				var ae *quic.ApplicationError
				if err := context.Cause(qc.Context()); !errors.As(err, &ae) || tunnel.CloseCode(ae.ErrorCode) != tc.code {
					t.Errorf("closed with %v", err)
				}
			})
		})
	}
}

// Streams that ask for what a node may not have.
func TestStreamsANodeMayNotOpen(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header []byte
		status tunnel.Status
		reset  bool
	}{
		{"tcp", header(t, tunnel.Header{Kind: tunnel.KindTCP, Target: "10.0.0.1:22"}), tunnel.StatusDenied, false},
		{"kubelet", header(t, tunnel.Header{Kind: tunnel.KindKubelet}), tunnel.StatusDenied, false},
		{"unknown kind", []byte{1, 99, 0, 0, 0, 0}, tunnel.StatusUnsupported, false},
		{"udp", []byte{1, 2, 0, 0, 0, 0}, tunnel.StatusUnsupported, false},
		{"udp with a target", append([]byte{1, 2, 0, 11}, "10.0.0.1:53\x00\x00"...), tunnel.StatusUnsupported, false},
		{"tun", []byte{1, 5, 0, 0, 0, 0}, tunnel.StatusUnsupported, false},
		{"critical flag", []byte{1, 4, 0x80, 0, 0, 0}, tunnel.StatusUnsupported, false},
		{"version", []byte{2, 4, 0, 0, 0, 0}, tunnel.StatusUnsupported, false},
		{"long target", []byte{1, 1, 0, 0x7f, 0xff}, 0, true},
		{"apiserver with a target", append([]byte{1, 4, 0, 3}, "a:1\x00\x00"...), 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inLab(t, nil, func(t *testing.T, l *lab) {
				qc, done := l.rawNode("berlin-1")
				defer done()
				control, err := qc.OpenStream()
				if err != nil {
					t.Fatal(err)
				}
				control.Write(message(t, tunnel.Hello{Version: 1, Node: "berlin-1"}))
				l.await("berlin-1 true")
				if w, ok := receive(t, control).(tunnel.Welcome); !ok || w.Capabilities != tunnel.CapOptimistic|tunnel.CapMove {
					t.Errorf("WELCOME: %+v", w)
				}
				st, err := qc.OpenStream()
				if err != nil {
					t.Fatal(err)
				}
				st.Write(tc.header)
				resp, err := tunnel.ReadResponse(st)
				if tc.reset {
					var se *quic.StreamError
					if !errors.As(err, &se) || tunnel.ResetCode(se.ErrorCode) != tunnel.ResetProtocol {
						t.Errorf("%+v, %v", resp, err)
					}
				} else if err != nil || resp.Status != tc.status || resp.Text == "" {
					t.Errorf("%+v, %v", resp, err)
				}
			})
		})
	}
}

// Dials that an agent does not serve, from a gateway that does not keep to what the
// node's HELLO says.
func TestDialsAnAgentDoesNotServe(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		addr := netipAddr("10.0.0.9:7443")
		pc := l.net.Listen(addr)
		tr := &quic.Transport{Conn: pc}
		ln, err := tr.Listen(&tls.Config{
			NextProtos: []string{tunnel.ALPN}, ClientAuth: tls.RequireAnyClientCert,
			Certificates: []tls.Certificate{*l.ca.Gateway(t, tunnel.ServerName)},
		}, tunnel.GatewayConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { ln.Close(); tr.Close(); pc.Close() }()
		n := l.join("berlin-1", nil, func(c *agent.Config) { c.Gateways, c.Transport = []string{addr.String()}, agent.QUIC })
		defer n.stop()
		qc, err := ln.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		control, err := qc.AcceptStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := receive(t, control).(tunnel.Hello); !ok || h.Capabilities != tunnel.CapOptimistic|tunnel.CapMove {
			t.Errorf("HELLO: %+v", h)
		}
		control.Write(message(t, tunnel.Welcome{Version: 1, Gateway: "g", Epoch: 1}))
		for name, header := range map[string][]byte{
			"udp": append([]byte{1, 2, 0, 11}, "10.0.0.1:53\x00\x00"...), "tun": {1, 5, 0, 0, 0, 0},
		} {
			st, err := qc.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			st.Write(header)
			if resp, err := tunnel.ReadResponse(st); err != nil || resp.Status != tunnel.StatusUnsupported || !strings.Contains(resp.Text, name) {
				t.Errorf("%s: %+v, %v", name, resp, err)
			}
		}
	})
}

// receive reads a control message.
func receive(t *testing.T, r io.Reader) tunnel.Message {
	t.Helper()
	m, err := tunnel.ReadMessage(bufio.NewReader(r))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rawNode is a node without an agent.
func (l *lab) rawNode(name string) (*quic.Conn, func()) {
	l.t.Helper()
	return l.rawNodeAt(name, gatewayAddr)
}

func (l *lab) rawNodeAt(name string, at netip.AddrPort) (*quic.Conn, func()) {
	l.t.Helper()
	pc := l.net.Listen(netipAddr("10.0.1.1:0"))
	tr := &quic.Transport{Conn: pc}
	qc, err := tr.Dial(l.t.Context(), net.UDPAddrFromAddrPort(at), &tls.Config{
		NextProtos: []string{tunnel.ALPN}, ServerName: tunnel.ServerName, RootCAs: l.ca.Pool,
		Certificates: []tls.Certificate{*l.ca.Node(l.t, name)},
	}, tunnel.AgentConfig())
	if err != nil {
		l.t.Fatal(err)
	}
	return qc, func() {
		qc.CloseWithError(0, "")
		tr.Close()
		pc.Close()
	}
}

func message(t *testing.T, m tunnel.Message) []byte {
	t.Helper()
	b, err := tunnel.AppendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func header(t *testing.T, h tunnel.Header) []byte {
	t.Helper()
	b, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
