package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// fleet is several gateways of one cluster on the lab's network.
type fleet struct {
	*lab
	list    signed.Gateways
	members map[string]*member
}

type member struct {
	*lab // its own egress socket, sessions and events; network and CA are shared
	addr netip.AddrPort
}

// inFleet runs f with gateways of the given ids.
func inFleet(t *testing.T, ids []string, f func(t *testing.T, fl *fleet)) {
	t.Helper()
	inLab(t, nil, func(t *testing.T, l *lab) {
		fl := &fleet{lab: l, members: map[string]*member{}, list: signed.Gateways{Version: 1}}
		for i, id := range ids {
			addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 2, byte(i + 1)}), 7443)
			fl.list.Gateways = append(fl.list.Gateways, signed.Gateway{ID: id, Addresses: []string{addr.String()}})
			fl.members[id] = &member{addr: addr}
		}
		for _, id := range ids {
			fl.launch(id)
		}
		fl.meshed(len(ids))
		defer func() {
			for _, m := range fl.members {
				m.stop()
			}
		}()
		f(t, fl)
	})
}

// launch starts a gateway process of that id, also one that replaces another.
func (fl *fleet) launch(id string) *member {
	fl.t.Helper()
	m := &member{addr: fl.members[id].addr}
	m.lab = &lab{
		t: fl.t, ca: fl.ca, net: fl.net, routes: fl.routes, api: fl.api, logs: fl.logs,
		denied: map[string]error{}, events: make(chan string, 1000),
	}
	m.cfg = fl.cfg
	m.cfg.ID, m.cfg.CA, m.cfg.ClientCAs = id, fl.ca.Cert, fl.ca.Pool
	m.cfg.Certificate = tunneltest.Source(fl.ca.Member(fl.t, tunnel.ServerName, tunnel.GatewayName(id)))
	m.cfg.Authorize = m.authorize
	m.cfg.OnSession = func(node string, connected bool, _ time.Time) { m.events <- fmt.Sprintf("%s %v", node, connected) }
	m.cfg.ListenPeer = func() (net.PacketConn, error) {
		return fl.net.Listen(netip.AddrPortFrom(m.addr.Addr(), 0)), nil
	}
	m.startAt(m.addr)
	fl.members[id] = m
	doc, err := fl.list.Sign(fl.ca)
	if err != nil {
		fl.t.Fatal(err)
	}
	if err := m.gw.SetGateways(doc); err != nil {
		fl.t.Fatal(err)
	}
	return m
}

// meshed waits until every gateway has a link to each of the n-1 others.
func (fl *fleet) meshed(n int) {
	fl.t.Helper()
	for range 600 {
		complete := true
		for _, m := range fl.members {
			ids := map[string]bool{}
			for _, p := range m.gw.Peers() {
				ids[p.ID] = true
			}
			complete = complete && len(ids) >= n-1
		}
		if complete {
			return
		}
		<-time.After(100 * time.Millisecond) // of the bubble's time
	}
	fl.t.Fatal("the gateways do not mesh\n" + fl.logs.String())
}

// node starts an agent that knows one gateway and learns of the others.
func (fl *fleet) node(name string, change func(*agent.Config)) *node {
	fl.t.Helper()
	n := fl.join(name, nil, func(c *agent.Config) {
		c.CA = fl.ca.Cert
		c.Gateways = []string{fl.list.Gateways[0].Addresses[0]}
		if change != nil {
			change(c)
		}
	})
	if up := <-n.states; !up {
		fl.t.Fatal("the agent's first state is not connected")
	}
	return n
}

// holders are the ids of the gateways that hold a current session of the node.
func (fl *fleet) holders(node string) (ids []string) {
	for id, m := range fl.members {
		for _, s := range m.gw.Sessions() {
			if s.Node == node && !s.Superseded {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// settle waits for what is on its way.
func settle() {
	<-time.After(time.Second) // of the bubble's time
	synctest.Wait()
}

func TestAnyGatewayServesAnyNode(t *testing.T) {
	inFleet(t, []string{"a", "b", "c"}, func(t *testing.T, fl *fleet) {
		fl.node("berlin-1", nil)
		settle()
		if h := fl.holders("berlin-1"); len(h) != 1 || h[0] != "a" {
			t.Fatalf("holders: %v", h)
		}
		for id, m := range fl.members {
			if !m.gw.Connected("berlin-1") {
				t.Errorf("gateway %s does not know the node", id)
			}
			for range 2 { // the second is optimistic
				c := m.connected("berlin-1:10250")
				roundTrip(t, c, []byte("through "+id))
				c.CloseWrite()
				if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
					t.Errorf("%s: half-close: %q, %v", id, rest, err)
				}
				c.Close()
			}
		}
		fl.routes.mu.Lock()
		fl.routes.pods[netip.MustParseAddr("10.244.1.5")] = "berlin-1"
		fl.routes.mu.Unlock()
		code, text := fl.members["c"].refused("10.244.1.5:80")
		if code != 502 || !strings.Contains(text, "denied") {
			t.Errorf("the agent's own refusal crosses the mesh: %d %q", code, text)
		}
		if code, _ := fl.members["c"].refused("nobody:10250"); code != 502 {
			t.Errorf("unknown node: %d", code)
		}
		synctest.Wait()
		if !strings.Contains(fl.logs.String(), `msg=dial who="gateway c" kind=kubelet target=kubelet`) {
			t.Error("no audit line of the forwarded dial")
		}
	})
}

// A node whose home is another gateway than the one it began at goes there when
// it looks, and what the old session carries goes on.
func TestNodeReturnsHome(t *testing.T) {
	inFleet(t, []string{"a", "b", "c"}, func(t *testing.T, fl *fleet) {
		name := ""
		for i := 0; name == ""; i++ {
			if n := fmt.Sprintf("n%d", i); fl.list.Rank(n)[0].ID == "c" {
				name = n
			}
		}
		n := fl.node(name, nil)
		settle()
		c := fl.members["b"].connected(name + ":10250")
		roundTrip(t, c, []byte("before"))
		<-time.After(10 * time.Minute)
		if h := fl.holders(name); len(h) != 1 || h[0] != "c" {
			t.Fatalf("holders: %v\n%s", h, fl.logs.String())
		}
		roundTrip(t, c, []byte("after"))
		d := fl.members["a"].connected(name + ":10250")
		roundTrip(t, d, []byte("new"))
		d.Close()
		c.Close()
		settle()
		if len(n.states) != 1 || !<-n.states {
			t.Error("the move was seen as a loss")
		}
		for id, m := range fl.members {
			if len(m.gw.Sessions()) != map[string]int{"c": 1}[id] {
				t.Errorf("sessions at %s: %+v", id, m.gw.Sessions())
			}
		}
	})
}

func TestDrainMovesNodes(t *testing.T) {
	inFleet(t, []string{"a", "b", "c"}, func(t *testing.T, fl *fleet) {
		const nodes = 12
		for i := range nodes {
			fl.node(fmt.Sprintf("n%d", i), nil)
		}
		settle()
		a := fl.members["a"]
		kept := a.connected("n0:10250")
		roundTrip(t, kept, []byte("before"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		closed := make(chan error, 1)
		go func() { closed <- a.gw.Close(ctx) }()
		// Every dial at every gateway works while the nodes move.
		for range 60 {
			<-time.After(50 * time.Millisecond)
			for i := range nodes {
				for _, id := range []string{"b", "c"} {
					c := fl.members[id].connected(fmt.Sprintf("n%d:10250", i))
					roundTrip(t, c, []byte("x"))
					c.Close()
				}
			}
		}
		for i := range nodes {
			name := fmt.Sprintf("n%d", i)
			if h := fl.holders(name); len(h) != 1 || h[0] == "a" {
				t.Errorf("%s: holders %v", name, h)
			}
		}
		<-time.After(5 * time.Minute)
		roundTrip(t, kept, []byte("an exec session outlives the move"))
		select {
		case err := <-closed:
			t.Fatalf("closed before its streams ended: %v", err)
		default:
		}
		kept.Close()
		if err := <-closed; err != nil {
			t.Error(err)
		}
		fl.launch("a")
		fl.meshed(3)
		<-time.After(11 * time.Minute) // a minute of avoidance, then within 7.5
		for i := range nodes {
			name := fmt.Sprintf("n%d", i)
			if h := fl.holders(name); len(h) != 1 || h[0] != fl.list.Rank(name)[0].ID {
				t.Errorf("%s: holders %v, home %s", name, h, fl.list.Rank(name)[0].ID)
			}
		}
	})
}

// A gateway that disappears: its nodes go to the next one of their order and are
// found there.
func TestGatewayDisappears(t *testing.T) {
	inFleet(t, []string{"a", "b", "c"}, func(t *testing.T, fl *fleet) {
		n := fl.node("berlin-1", nil)
		settle()
		holder := fl.holders("berlin-1")[0]
		fl.net.Cut(fl.members[holder].addr.Addr(), true)
		if up := <-n.states; up {
			t.Fatal("no loss")
		}
		if up := <-n.states; !up {
			t.Fatal("no return")
		}
		settle()
		for id, m := range fl.members {
			if id == holder {
				continue
			}
			c := m.connected("berlin-1:10250")
			roundTrip(t, c, []byte("x"))
			c.Close()
		}
		fl.net.Cut(fl.members[holder].addr.Addr(), false)
		fl.meshed(3)
		settle()
		// What it believed in the dark does not count: the newest session wins.
		c := fl.members[holder].connected("berlin-1:10250")
		roundTrip(t, c, []byte("x"))
		c.Close()
	})
}

func TestKickReachesEveryGateway(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		n := fl.node("berlin-1", nil)
		settle()
		c := fl.members["b"].connected("berlin-1:10250")
		roundTrip(t, c, []byte("x"))
		for _, m := range fl.members {
			m.deny("berlin-1", errors.New("the key was revoked"))
		}
		if n := fl.members["b"].gw.Kick("berlin-1", "revoked"); n != 0 {
			t.Errorf("%d sessions at b", n)
		}
		if up := <-n.states; up {
			t.Fatal("no loss")
		}
		if _, err := io.ReadAll(c); err == nil {
			t.Error("a stream of a revoked node ended cleanly")
		}
		c.Close()
		<-time.After(2 * time.Minute)
		if fl.members["a"].gw.Connected("berlin-1") || fl.members["b"].gw.Connected("berlin-1") {
			t.Error("a revoked node is back")
		}
	})
}

func TestWhoMayMesh(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		other := tunneltest.NewCA(t)
		for name, tc := range map[string]struct {
			cert *tls.Certificate
			want string
		}{
			"a node":                    {fl.ca.Node(t, "berlin-1"), "no gateway's certificate"},
			"a gateway not in the list": {fl.ca.Member(t, tunnel.ServerName, tunnel.GatewayName("z")), "not in the cluster's list"},
			"two names":                 {fl.ca.Member(t, tunnel.GatewayName("a"), tunnel.GatewayName("b")), "no gateway's certificate"},
			"another authority":         {other.Member(t, tunnel.ServerName, tunnel.GatewayName("b")), "bad certificate"},
		} {
			pc := fl.net.Listen(netip.MustParseAddrPort("10.0.9.9:0"))
			tr := &quic.Transport{Conn: pc}
			qc, err := tr.Dial(t.Context(), net.UDPAddrFromAddrPort(fl.members["a"].addr), &tls.Config{
				NextProtos: []string{tunnel.MeshALPN}, ServerName: tunnel.ServerName, RootCAs: fl.ca.Pool,
				Certificates: []tls.Certificate{*tc.cert},
			}, tunnel.MeshConfig())
			if err == nil {
				_, err = qc.AcceptStream(t.Context())
				qc.CloseWithError(0, "")
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) && name != "another authority" {
				t.Errorf("%s: %v, want %q", name, err, tc.want)
			}
			tr.Close()
			pc.Close()
		}
		for _, p := range fl.members["a"].gw.Peers() {
			if p.ID != "b" {
				t.Errorf("peer %+v", p)
			}
		}
	})
}

// Lists and policies of anybody else than the authority change nothing, neither
// at a gateway nor at an agent, and old ones do not come back.
func TestForgedDocuments(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		a := fl.members["a"]
		forged := signed.Gateways{Version: 99, Gateways: []signed.Gateway{{ID: "evil", Addresses: []string{"10.0.9.9:1"}}}}
		doc, err := forged.Sign(tunneltest.NewCA(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.gw.SetGateways(doc); err == nil {
			t.Error("a gateway took a forged list")
		}
		docs := map[string][]byte{}
		n := fl.node("berlin-1", func(c *agent.Config) { c.Documents = memory(docs) })
		settle()
		if docs[signed.KindGateways] == nil {
			t.Fatal("the agent did not keep the list")
		}
		_ = n
		// A gateway that is not in the list any more has no peers and no nodes.
		fl.list = signed.Gateways{Version: 2, Gateways: fl.list.Gateways[1:]}
		doc, err = fl.list.Sign(fl.ca)
		if err != nil {
			t.Fatal(err)
		}
		if err := fl.members["b"].gw.SetGateways(doc); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		for _, p := range fl.members["b"].gw.Peers() {
			if p.ID == "a" {
				t.Error("a gateway that was taken from the list is still a peer")
			}
		}
	})
}

type memory map[string][]byte

func (m memory) Load(kind string) ([]byte, error) { return m[kind], nil }
func (m memory) Save(kind string, doc []byte) error {
	m[kind] = doc
	return nil
}
