package gateway_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// rawSession is a session of a node without an agent.
func (l *lab) rawSession(t *testing.T, name string) (*quic.Conn, func()) {
	t.Helper()
	qc, done := l.rawNode(name)
	control, err := qc.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	control.Write(message(t, tunnel.Hello{Version: 1, Node: name}))
	if w, ok := receive(t, control).(tunnel.Welcome); !ok {
		t.Fatalf("WELCOME: %+v", w)
	}
	return qc, done
}

// dialAPI opens a connection to the apiserver, and returns the answer.
func dialAPI(t *testing.T, qc *quic.Conn) (*quic.Stream, tunnel.Response) {
	t.Helper()
	st, err := qc.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	st.Write(header(t, tunnel.Header{Kind: tunnel.KindAPIServer}))
	resp, err := tunnel.ReadResponse(st)
	if err != nil {
		t.Fatal(err)
	}
	return st, resp
}

func echoes(t *testing.T, st *quic.Stream) {
	t.Helper()
	st.Write([]byte("x"))
	if n, err := st.Read(make([]byte, 1)); n != 1 {
		t.Errorf("read %d bytes: %v", n, err)
	}
}

// What a superseded session carries goes on; what the node still opens on it is
// carried only while the node may not know that it is superseded.
func TestSupersededSessionTakesNoStreams(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.serveAPI()
		first, done := l.rawSession(t, "berlin-1")
		defer done()
		kept, resp := dialAPI(t, first)
		if resp.Status != tunnel.StatusOK {
			t.Fatalf("%+v", resp)
		}
		second, done := l.rawSession(t, "berlin-1")
		defer done()
		if _, resp := dialAPI(t, first); resp.Status != tunnel.StatusOK {
			t.Errorf("at once after the move: %+v", resp)
		}
		<-time.After(10 * time.Second)
		if _, resp := dialAPI(t, first); resp.Status != tunnel.StatusDraining || !strings.Contains(resp.Text, "newer session") {
			t.Errorf("long after the move: %+v", resp)
		}
		if _, resp := dialAPI(t, second); resp.Status != tunnel.StatusOK {
			t.Errorf("on the newest: %+v", resp)
		}
		echoes(t, kept)
	})
}

// The bound of a node's connections is not one of each session that it makes.
func TestStreamsAreCountedPerNode(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.serveAPI()
		refused := 0
		var last *quic.Stream
		for range 3 {
			qc, done := l.rawSession(t, "berlin-1")
			defer done()
			for range 800 {
				st, resp := dialAPI(t, qc)
				switch {
				case resp.Status == tunnel.StatusOK:
					last = st
				case strings.Contains(resp.Text, "node berlin-1 has 2048 connections"):
					refused++
				default:
					t.Fatalf("%+v", resp)
				}
			}
		}
		if refused != 3*800-2048 {
			t.Errorf("%d refused", refused)
		}
		other, done := l.rawSession(t, "berlin-2")
		defer done()
		if _, resp := dialAPI(t, other); resp.Status != tunnel.StatusOK {
			t.Errorf("another node: %+v", resp)
		}
		echoes(t, last)
	})
}

// Sessions that a node leaves behind with something on them are few.
func TestFewSupersededSessionsStay(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.serveAPI()
		var sessions []*quic.Conn
		for range 12 {
			qc, done := l.rawSession(t, "berlin-1")
			defer done()
			if _, resp := dialAPI(t, qc); resp.Status != tunnel.StatusOK {
				t.Fatalf("%+v", resp)
			}
			sessions = append(sessions, qc)
		}
		settle()
		if n := len(l.gw.Sessions()); n != 9 {
			t.Errorf("%d sessions", n)
		}
		for i, qc := range sessions {
			err := context.Cause(qc.Context())
			ae, ok := errors.AsType[*quic.ApplicationError](err)
			if cut := ok && tunnel.CloseCode(ae.ErrorCode) == tunnel.CloseSuperseded; cut != (i < 3) {
				t.Errorf("session %d: %v", i, err)
			}
		}
	})
}

// notAdopted makes a session that its node never takes up: it says HELLO, and ends
// after that time without having heard WELCOME.
func (l *lab) notAdopted(t *testing.T, name string, at netip.AddrPort, after time.Duration) {
	t.Helper()
	qc, done := l.rawNodeAt(name, at)
	defer done()
	control, err := qc.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	control.Write(message(t, tunnel.Hello{Version: 1, Node: name}))
	<-time.After(after)
	synctest.Wait()
}

// reaches fails unless the gateways reach the node and the node reaches the
// apiserver.
func reaches(t *testing.T, n *node, name, when string, gateways ...*gateway.Gateway) {
	t.Helper()
	for i, gw := range gateways {
		c, err := gw.Dial(t.Context(), name, gateway.Kubelet())
		if err != nil {
			t.Errorf("%s: gateway %d: %v", when, i, err)
			continue
		}
		roundTrip(t, c, []byte("to the node"))
		c.Close()
	}
	c, err := n.DialAPIServer(t.Context())
	if err != nil {
		t.Errorf("%s: %v", when, err)
		return
	}
	roundTrip(t, c, []byte("to the apiserver"))
	c.Close()
}

// A session that its node did not take up after all leaves it the one that it has.
func TestSuccessorThatIsNotAdopted(t *testing.T) {
	for name, after := range map[string]time.Duration{
		"at once":                         100 * time.Millisecond,
		"once the old one takes no dials": 10 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, nil, func(t *testing.T, l *lab) {
				l.serveAPI()
				n := l.joined("berlin-1", nil, nil)
				kept := l.connected("berlin-1:10250")
				roundTrip(t, kept, []byte("before"))
				l.notAdopted(t, "berlin-1", gatewayAddr, after)
				<-time.After(20 * time.Second)
				reaches(t, n, "berlin-1", "after 20 s", l.gw)
				<-time.After(16 * time.Minute)
				reaches(t, n, "berlin-1", "after 16 min", l.gw)
				roundTrip(t, kept, []byte("after"))
				if s := l.gw.Sessions(); len(s) != 1 || s[0].Superseded || s[0].Streams != 1 {
					t.Errorf("%+v", s)
				}
				for len(l.events) > 0 {
					if e := <-l.events; e != "berlin-1 true" {
						t.Errorf("event %q", e)
					}
				}

				// It is superseded like any other: by one that stays.
				_, done := l.rawSession(t, "berlin-1")
				defer done()
				start := time.Now()
				<-time.After(10 * time.Second)
				if _, err := n.DialAPIServer(t.Context()); err == nil || !strings.Contains(err.Error(), "newer session") {
					t.Errorf("on the one that is superseded again: %v", err)
				}
				if _, err := io.ReadAll(kept); err == nil {
					t.Error("its stream ended cleanly")
				}
				if d := time.Since(start); d < 14*time.Minute || d > 15*time.Minute {
					t.Errorf("its stream was cut after %s", d)
				}
				kept.Close()
			})
		})
	}
}

// So does one that is refused after it has taken over.
func TestSuccessorThatIsRefused(t *testing.T) {
	var asked atomic.Int32
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Authorize = func(string, *x509.Certificate) error {
			if asked.Add(1) == 4 { // twice for each session
				return errors.New("revoked")
			}
			return nil
		}
	}, func(t *testing.T, l *lab) {
		l.serveAPI()
		n := l.joined("berlin-1", nil, nil)
		l.notAdopted(t, "berlin-1", gatewayAddr, 20*time.Second)
		reaches(t, n, "berlin-1", "after the refusal", l.gw)
		if asked.Load() != 4 {
			t.Errorf("asked %d times", asked.Load())
		}
	})
}

// A node that is kicked has none of its sessions any more.
func TestKickedSessionLeavesNoOther(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		for range 5 {
			_, done := l.rawSession(t, "berlin-1")
			defer done()
		}
		settle()
		if n := l.gw.Kick("berlin-1", "revoked"); n != 5 {
			t.Errorf("%d kicked", n)
		}
		settle()
		if s := l.gw.Sessions(); len(s) > 0 || l.gw.Connected("berlin-1") || strings.Contains(l.logs.String(), "current one again") {
			t.Errorf("%+v\n%s", s, l.logs)
		}
	})
}

// A session at another gateway that its node did not take up leaves it the one here.
func TestSuccessorElsewhereThatIsNotAdopted(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		fl.serveAPI()
		name := "n0"
		for i := 1; fl.list.Rank(name)[0].ID != "a"; i++ { // it moves to its home otherwise
			name = fmt.Sprintf("n%d", i)
		}
		n := fl.node(name, nil)
		a, b := fl.members["a"], fl.members["b"]
		settle()
		kept := b.connected(name + ":10250")
		roundTrip(t, kept, []byte("before"))
		fl.notAdopted(t, name, b.addr, 10*time.Second)
		<-time.After(20 * time.Second)
		reaches(t, n, name, "after 20 s", a.gw, b.gw)
		<-time.After(16 * time.Minute)
		reaches(t, n, name, "after 16 min", a.gw, b.gw)
		roundTrip(t, kept, []byte("after"))
		kept.Close()
		for len(a.events) > 0 {
			if e := <-a.events; e != name+" true" {
				t.Errorf("event %q", e)
			}
		}
	})
}
