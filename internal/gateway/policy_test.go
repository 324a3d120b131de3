package gateway_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// What may be dialled through a node is what the cluster's authority signed for
// it. The gateway here believes that every address is the node's; the agent does
// not.
func TestSignedPolicyIsTheLastWord(t *testing.T) {
	var mu sync.Mutex
	var policy []byte
	set := func(doc []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		policy = doc
	}
	pods := func(node string, version uint64, cidr string) signed.Policy {
		return signed.Policy{Node: node, Version: version, Allow: []signed.Rule{{Network: signed.TCP, Prefix: netip.MustParsePrefix(cidr)}}}
	}
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Policy = func(string) []byte {
			mu.Lock()
			defer mu.Unlock()
			return policy
		}
		for _, a := range []string{"10.244.1.5", "10.244.2.5", "192.168.1.50", "127.0.0.1"} {
			l.routes.pods[netip.MustParseAddr(a)] = "berlin-1"
		}
	}, func(t *testing.T, l *lab) {
		docs := memory{}
		pod := tunneltest.NewListener()
		go func() {
			for {
				c, err := pod.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); echo(c) }()
			}
		}()
		defer pod.Close()
		change := func(c *agent.Config) {
			c.CA, c.Documents = l.ca.Cert, docs
			c.DialTCP = func(context.Context, netip.AddrPort) (net.Conn, error) { return pod.Dial() }
		}
		n := l.joined("berlin-1", nil, change)
		allowed := func(want ...string) {
			t.Helper()
			<-time.After(time.Second) // of the bubble's time: until the policy has arrived
			synctest.Wait()
			for _, target := range []string{"10.244.1.5:80", "10.244.2.5:80", "192.168.1.50:502", "127.0.0.1:2379"} {
				ok := strings.Contains(" "+strings.Join(want, " ")+" ", " "+target+" ")
				if ok {
					c := l.connected(target)
					roundTrip(t, c, []byte("x"))
					c.Close()
				} else if code, text := l.refused(target); code != 502 || !strings.Contains(text, "denied") {
					t.Errorf("%s: %d %q", target, code, text)
				}
			}
			l.connected("berlin-1:10250").Close()
		}
		allowed() // no policy: the kubelet alone
		p := pods("berlin-1", 5, "10.244.1.0/24")
		set(p.Sign(l.ca))
		l.gw.PolicyChanged("berlin-1")
		allowed("10.244.1.5:80")

		// A gateway that was taken over signs for itself, brings another node's, or
		// an old one: nothing changes.
		other := tunneltest.NewCA(t)
		for i, forge := range []func() ([]byte, error){
			func() ([]byte, error) { p := pods("berlin-1", 9, "0.0.0.0/0"); return p.Sign(other) },
			func() ([]byte, error) { p := pods("berlin-2", 9, "0.0.0.0/0"); return p.Sign(l.ca) },
			func() ([]byte, error) { p := pods("berlin-1", 4, "10.244.2.0/24"); return p.Sign(l.ca) },
			func() ([]byte, error) { return []byte(`{}`), nil },
			func() ([]byte, error) {
				return []byte(strings.Replace(string(docs[signed.KindPolicy]), "edge-node-policy/1", "edge-gateways/1", 1)), nil
			},
		} {
			set(forge())
			l.gw.PolicyChanged("berlin-1")
			t.Log("forgery", i)
			allowed("10.244.1.5:80")
		}
		synctest.Wait()
		logs := l.logs.String()
		for _, want := range []string{
			"document is not signed by the cluster's authority", "it is of node berlin-2",
			`level=WARN msg="dial failed" node=berlin-1 gateway=10.0.0.1:7443 id="" kind=tcp target=192.168.1.50:502`,
		} {
			if !strings.Contains(logs, want) {
				t.Errorf("no %q in the log", want)
			}
		}
		// A newer one moves the range; it outlives the agent's process.
		p = pods("berlin-1", 6, "10.244.2.0/24")
		set(p.Sign(l.ca))
		l.gw.PolicyChanged("berlin-1")
		allowed("10.244.2.5:80")
		set(nil, nil)
		n.stop()
		l.await("berlin-1 false")
		l.joined("berlin-1", nil, change)
		allowed("10.244.2.5:80")
	})
}

// An address of a service leads to one of its endpoints: a pod of a node, or
// what is outside.
func TestServiceAddresses(t *testing.T) {
	services := map[string]string{"10.96.0.7:80": "10.244.1.5:8080", "10.96.0.8:443": "192.0.2.9:8443"}
	var dialled []string
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Service = func(a netip.AddrPort) (netip.AddrPort, error) {
			if to, ok := services[a.String()]; ok {
				return netip.MustParseAddrPort(to), nil
			}
			if a == netip.MustParseAddrPort("10.96.0.9:80") {
				return netip.AddrPort{}, fmt.Errorf("default/empty has no endpoint")
			}
			return netip.AddrPort{}, gateway.ErrNoRoute
		}
		c.DialLocal = func(_ context.Context, _, addr string) (net.Conn, error) {
			dialled = append(dialled, addr)
			return l.api.Dial()
		}
		l.routes.pods[netip.MustParseAddr("10.244.1.5")] = "berlin-1"
	}, func(t *testing.T, l *lab) {
		go func() {
			for {
				c, err := l.api.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); echo(c) }()
			}
		}()
		var pods []netip.AddrPort
		pod := tunneltest.NewListener()
		defer pod.Close()
		go func() {
			for {
				c, err := pod.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); echo(c) }()
			}
		}()
		l.joined("berlin-1", nil, func(c *agent.Config) {
			c.AllowTCP = func(netip.AddrPort) error { return nil }
			c.DialTCP = func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
				pods = append(pods, a)
				return pod.Dial()
			}
		})
		for _, target := range []string{"10.96.0.7:80", "10.96.0.8:443"} {
			c := l.connected(target)
			roundTrip(t, c, []byte("x"))
			c.Close()
		}
		if code, text := l.refused("10.96.0.9:80"); code != 503 || !strings.Contains(text, "has no endpoint") {
			t.Errorf("%d %q", code, text)
		}
		synctest.Wait()
		if len(pods) != 1 || pods[0].String() != "10.244.1.5:8080" || len(dialled) != 1 || dialled[0] != "192.0.2.9:8443" {
			t.Errorf("pods %v, outside %v", pods, dialled)
		}
	})
}
