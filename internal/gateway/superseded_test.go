package gateway_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

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
