package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// rawPeer is a connection of a gateway that was taken over to another one.
func (fl *fleet) rawPeer(t *testing.T, id, to string) (qc *quic.Conn, control *quic.Stream, done func()) {
	t.Helper()
	qc, done = fl.silentPeer(t, id, to)
	control, err := qc.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	control.Write(message(t, tunnel.MeshHello{Version: 1, Process: "taken over"}))
	return qc, control, done
}

// silentPeer is rawPeer of which nothing is heard.
func (fl *fleet) silentPeer(t *testing.T, id, to string) (qc *quic.Conn, done func()) {
	t.Helper()
	pc := fl.net.Listen(netip.AddrPortFrom(fl.members[id].addr.Addr(), 0))
	tr := &quic.Transport{Conn: pc}
	qc, err := tr.Dial(t.Context(), net.UDPAddrFromAddrPort(fl.members[to].addr), &tls.Config{
		NextProtos: []string{tunnel.MeshALPN}, ServerName: tunnel.ServerName, RootCAs: fl.ca.Pool,
		Certificates: []tls.Certificate{*fl.ca.Member(t, tunnel.ServerName, tunnel.GatewayName(id))},
	}, tunnel.MeshConfig())
	if err != nil {
		t.Fatal(err)
	}
	return qc, func() { qc.CloseWithError(0, ""); tr.Close(); pc.Close() }
}

// closedWith fails unless the other end has closed the connection with that text.
func closedWith(t *testing.T, qc *quic.Conn, text string) {
	t.Helper()
	select {
	case <-qc.Context().Done():
	case <-time.After(time.Minute): // of the bubble's time
		t.Fatal("not closed")
	}
	err := context.Cause(qc.Context())
	if ae, ok := errors.AsType[*quic.ApplicationError](err); !ok || !ae.Remote || !strings.Contains(ae.ErrorMessage, text) {
		t.Errorf("closed with %v, want %q", err, text)
	}
}

// A gateway that was taken over makes another one hold only so much.
func TestPeerThatHoldsTooMuch(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		go func() { // a snapshot is as many events
			for range fl.members["a"].events { // none of them matters
			}
		}()
		defer close(fl.members["a"].events)
		qc, control, done := fl.rawPeer(t, "b", "a")
		defer done()
		const held = 1 << 15
		say := func(from, to int) {
			for ; from < to; from += tunnel.MaxOwned {
				var m tunnel.Owned
				for i := from; i < min(to, from+tunnel.MaxOwned); i++ {
					m.Sessions = append(m.Sessions, tunnel.OwnedSession{Node: fmt.Sprintf("made-up-%d", i), Epoch: 1})
				}
				control.Write(message(t, m))
			}
		}
		say(0, held)
		settle()
		say(0, held) // once more is no more
		settle()
		if qc.Context().Err() != nil {
			t.Fatalf("cut at the bound: %v", context.Cause(qc.Context()))
		}
		say(held, held+1)
		closedWith(t, qc, "gateway b says that it holds more than 32768 nodes")
		settle()
		for _, p := range fl.members["a"].gw.Peers() {
			if p.Nodes > 0 {
				t.Errorf("%+v", p)
			}
		}
	})
}

func TestPeerThatConnectsTooOften(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		for i := range 9 { // one is b's own
			qc, _, done := fl.rawPeer(t, "b", "a")
			defer done()
			settle()
			switch {
			case i >= 7:
				closedWith(t, qc, "gateway b has 8 connections to this one already")
			case qc.Context().Err() != nil:
				t.Errorf("connection %d: %v", i, context.Cause(qc.Context()))
			}
		}
	})
}

// Those that say nothing count too.
func TestPeerThatConnectsTooOftenAndIsSilent(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		for i := range 9 { // one is b's own
			qc, done := fl.silentPeer(t, "b", "a")
			defer done()
			<-time.After(100 * time.Millisecond)
			switch {
			case i >= 7:
				closedWith(t, qc, "gateway b has 8 connections to this one already")
			case qc.Context().Err() != nil:
				t.Errorf("connection %d: %v", i, context.Cause(qc.Context()))
			}
		}
		<-time.After(tunnel.HelloTimeout) // and not for longer than they are there
		qc, _, done := fl.rawPeer(t, "b", "a")
		defer done()
		settle()
		if qc.Context().Err() != nil {
			t.Errorf("afterwards: %v", context.Cause(qc.Context()))
		}
	})
}
