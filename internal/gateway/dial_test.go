package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

func TestKubeletThroughConnect(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
		for range 3 {                                           // the second and third do not await the dial
			c := l.connected("berlin-1:10250")
			roundTrip(t, c, big)
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
				t.Fatalf("after half-close: %q, %v", rest, err)
			}
			c.Close()
		}
		synctest.Wait()
		if s := l.gw.Sessions(); len(s) != 1 || s[0].Streams != 0 || s[0].BootID != "boot-1" || s[0].EngineVersion != "1.2.3" || s[0].Superseded {
			t.Errorf("sessions: %+v", s)
		}
		logs := l.logs.String()
		if n := strings.Count(logs, "msg=dial who=apiserver kind=kubelet target=berlin-1:10250 sent=1048576 received=1048576"); n != 3 {
			t.Errorf("%d audit lines:\n%s", n, logs)
		}
		if n := strings.Count(logs, "optimistic=true"); n != 2 {
			t.Errorf("%d optimistic dials, want 2", n)
		}
	})
}

// A dial that does not wait costs one round trip to the first byte, one that
// does costs two.
func TestOptimisticDialSavesRoundTrip(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		var took [2]time.Duration
		for i := range took {
			start := time.Now()
			c := l.connected("berlin-1:10250")
			roundTrip(t, c, []byte("x"))
			took[i] = time.Since(start)
			c.Close()
			synctest.Wait()
		}
		// 5 ms each way.
		if took[0] != 20*time.Millisecond || took[1] != 10*time.Millisecond {
			t.Errorf("plain %s, optimistic %s; want 20ms and 10ms", took[0], took[1])
		}
	})
}

// The target must not be heard before the client has spoken, or the apiserver
// takes the bytes for an error.
func TestNothingAfterHeaderUntilClientSpeaks(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", func(c net.Conn) {
			io.WriteString(c, "banner")
			echo(c)
		}, nil)
		for range 2 {
			c := l.connected("berlin-1:10250")
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("read %d bytes, %v before the client spoke", n, err)
			}
			c.SetReadDeadline(time.Time{})
			io.WriteString(c, "hello")
			got := make([]byte, len("bannerhello"))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "bannerhello" {
				t.Fatalf("%q, %v", got, err)
			}
			c.Close()
			synctest.Wait()
		}
	})
}

// What the client sends with its request goes to the target.
func TestClientSpeaksEarly(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		c, err := l.egress.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "CONNECT berlin-1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nearly")
		if head := readHead(t, c); !strings.HasPrefix(head, "HTTP/1.1 200 ") {
			t.Fatal(head)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "early" {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

func TestHalfCloseFromTarget(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		received := make(chan string, 1)
		l.joined("berlin-1", func(c net.Conn) {
			io.WriteString(c, "bye")
			c.(*tunneltest.PipeConn).CloseWrite()
			b, _ := io.ReadAll(c) // goes on after its own end
			received <- string(b)
		}, nil)
		c := l.connected("berlin-1:10250")
		io.WriteString(c, "one ")
		if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
			t.Fatalf("%q, %v", b, err)
		}
		io.WriteString(c, "two")
		c.CloseWrite()
		if got := <-received; got != "one two" {
			t.Errorf("target received %q", got)
		}
		c.Close()
	})
}

// A broken connection must not look like an orderly end.
func TestResetCrosses(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", func(c net.Conn) {
			io.ReadFull(c, make([]byte, 1))
			c.(*tunneltest.PipeConn).SetLinger(0)
		}, nil)
		c := l.connected("berlin-1:10250")
		io.WriteString(c, "x")
		if _, err := io.ReadAll(c); err == nil {
			t.Error("a reset of the kubelet's arrived as a clean end")
		}
		c.Close()
	})
}

func TestAPIServerFromNode(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, nil)
		go func() {
			for {
				c, err := l.api.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); echo(c) }()
			}
		}()
		c, err := n.DialAPIServer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, bytes.Repeat([]byte("w"), 300<<10))
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
			t.Errorf("after half-close: %q, %v", rest, err)
		}
		c.Close()
		synctest.Wait()
		if logs := l.logs.String(); !strings.Contains(logs, `msg=dial who="node berlin-1" kind=apiserver target=apiserver sent=307200 received=307200`) {
			t.Errorf("no audit line:\n%s", logs)
		}
	})
}

func TestAPIServerDown(t *testing.T) {
	inLab(t, func(l *lab, c *gateway.Config) {
		c.DialAPIServer = func(context.Context) (net.Conn, error) { return nil, errors.New("apiserver is not up yet") }
	}, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, nil)
		_, err := n.DialAPIServer(t.Context())
		se, ok := errors.AsType[*tunnel.StatusError](err)
		if !ok || se.Status != tunnel.StatusUnreachable || !strings.Contains(err.Error(), "not up yet") {
			t.Errorf("error: %v", err)
		}
	})
}

func TestPodThroughConnect(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		pod := netip.MustParseAddrPort("10.244.3.7:8443")
		l.routes.pods[pod.Addr()] = "berlin-1"
		l.routes.pods[netip.MustParseAddr("10.244.3.8")] = "berlin-1"
		l.routes.pods[netip.MustParseAddr("10.244.9.9")] = "berlin-1" // owned by a stale cache only
		l.routes.pods[netip.MustParseAddr("10.244.4.1")] = "berlin-2"
		l.routes.ambiguous[netip.MustParseAddr("10.244.5.5")] = true
		l.routes.nodes["berlin-2"] = true
		l.joined("berlin-1", nil, func(c *agent.Config) {
			c.AllowTCP = func(a netip.AddrPort) error {
				if netip.MustParsePrefix("10.244.3.0/24").Contains(a.Addr()) {
					return nil
				}
				return errors.New("not a pod of this node")
			}
			c.DialTCP = func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
				if a != pod {
					return nil, &net.OpError{Op: "dial", Err: errors.New("no such pod")}
				}
				x, y := tunneltest.Pipe()
				go func() { defer y.Close(); echo(y) }()
				return x, nil
			}
		})
		c := l.connected(pod.String())
		roundTrip(t, c, []byte("hello pod"))
		c.Close()

		for _, tc := range []struct {
			target string
			code   int
			text   string
		}{
			{"10.244.5.5:80", 502, "ambiguous"},
			{"10.244.9.9:80", 502, "denied: node berlin-1: 10.244.9.9:80: not a pod of this node"},
			{"10.244.3.8:80", 502, "no such pod"},
			{"10.244.4.1:80", 503, "not connected"},
			{"berlin-2:10250", 503, "dial kubelet of node berlin-2: node is not connected"},
			{"berlin-1:22", 502, "only the kubelet's (10250) is"},
			{"192.168.1.11:10250", 502, "nodes are addressed by name"},
			{"nobody:10250", 502, "no edge node has this name"},
			{"10.244.3.7:0", 502, "port out of range"},
			{"nonsense", 400, "host:port"},
		} {
			start := time.Now()
			code, text := l.refused(tc.target)
			if code != tc.code || !strings.Contains(text, tc.text) {
				t.Errorf("%s: %d %q, want %d with %q", tc.target, code, text, tc.code, tc.text)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("%s: answered after %s", tc.target, d)
			}
		}
	})
}

func TestTargetsOutsideTheTunnel(t *testing.T) {
	inLab(t, func(l *lab, c *gateway.Config) {
		c.DialLocal = func(_ context.Context, network, addr string) (net.Conn, error) {
			if network != "tcp" || addr != "10.96.0.10:443" {
				return nil, errors.New("connection refused by the test")
			}
			x, y := tunneltest.Pipe()
			go func() { defer y.Close(); echo(y) }()
			return x, nil
		}
	}, func(t *testing.T, l *lab) {
		c := l.connected("10.96.0.10:443")
		roundTrip(t, c, []byte("service"))
		c.Close()
		if code, text := l.refused("cloud-1:10250"); code != 502 || !strings.Contains(text, "refused by the test") {
			t.Errorf("%d %q", code, text)
		}
	})
}

// A kubelet that never answers: the agent gives up after its bound, and the
// apiserver has its answer within the gateway's.
func TestDialIsBounded(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		hang := func(c *agent.Config) {
			c.DialKubelet = func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}
		l.joined("berlin-1", nil, hang)
		start := time.Now()
		code, text := l.refused("berlin-1:10250")
		if took := time.Since(start); code != 504 || took < tunnel.AgentDialTimeout || took > tunnel.GatewayDialTimeout {
			t.Errorf("%d %q after %s", code, text, took)
		}
	})
	// The node vanishes without a word.
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		l.net.Cut(edgeAddr, true)
		start := time.Now()
		code, text := l.refused("berlin-1:10250")
		if took := time.Since(start); code != 504 || took != tunnel.GatewayDialTimeout {
			t.Errorf("%d %q after %s", code, text, took)
		}
		l.await("berlin-1 false") // by idle timeout
		if code, _ := l.refused("berlin-1:10250"); code != 502 {
			t.Errorf("undeclared and not connected: %d", code)
		}
	})
}

// Over TCP a dial has to wait for a place in the queue first. All of its waiting
// together is bounded as one step is.
func TestDialIsBoundedOverTCP(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		pod := netip.MustParseAddrPort("10.244.3.7:8443")
		l.routes.pods[pod.Addr()] = "berlin-1"
		l.joined("berlin-1", func(c net.Conn) { io.Copy(io.Discard, c) }, func(c *agent.Config) {
			c.Transport = agent.TCP
			c.AllowTCP = func(netip.AddrPort) error { return nil }
			c.DialTCP = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		bulk := l.connected("berlin-1:10250")
		defer bulk.Close()
		l.net.Cut(edgeAddr, true)
		go bulk.Write(make([]byte, 4<<20))
		settle()
		// The dial is on its way after 8 s, and the agent answers 10 s later.
		start := time.Now()
		time.AfterFunc(8*time.Second, func() { l.net.Cut(edgeAddr, false) })
		code, text := l.refused(pod.String())
		if took := time.Since(start); code != 504 || took < tunnel.AgentDialTimeout || took > tunnel.GatewayDialTimeout {
			t.Errorf("%d %q after %s", code, text, took)
		}
	})
	// The queue stays as it is.
	inLab(t, nil, func(t *testing.T, l *lab) {
		pod := netip.MustParseAddrPort("10.244.3.7:8443")
		l.routes.pods[pod.Addr()] = "berlin-1"
		l.joined("berlin-1", func(c net.Conn) { io.Copy(io.Discard, c) }, func(c *agent.Config) { c.Transport = agent.TCP })
		bulk := l.connected("berlin-1:10250")
		defer bulk.Close()
		l.net.Cut(edgeAddr, true)
		go bulk.Write(make([]byte, 4<<20))
		settle()
		start := time.Now()
		code, text := l.refused(pod.String())
		if took := time.Since(start); code != 504 || took > tunnel.GatewayDialTimeout {
			t.Errorf("%d %q after %s", code, text, took)
		}
		// A session that ends is closed in time only where its packets arrive.
		l.net.Cut(edgeAddr, false)
		settle()
	})
}

// A dial is found in the logs of all that took part in it by one number.
func TestTraceIsLogged(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		fl.serveAPI()
		n := fl.node("berlin-1", func(c *agent.Config) {
			c.DialKubelet = func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		})
		settle()
		for _, m := range fl.members {
			if code, text := m.refused("berlin-1:10250"); code != 502 {
				t.Errorf("%d %q", code, text)
			}
		}
		c, err := n.DialAPIServer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		settle()
		lines := map[string]int{} // by trace
		for line := range strings.Lines(fl.logs.String()) {
			if _, trace, ok := strings.Cut(line, " trace="); ok {
				lines[strings.Fields(trace)[0]]++
			}
		}
		// The holder's and the node's; both gateways' and the node's; what the node
		// dials is in the gateway's.
		var counts []int
		for _, n := range lines {
			counts = append(counts, n)
		}
		slices.Sort(counts)
		if !slices.Equal(counts, []int{1, 2, 3}) {
			t.Errorf("lines by trace: %v\n%s", lines, fl.logs.String())
		}
	})
}

func TestDialInProcess(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		if _, err := l.gw.Dial(t.Context(), "berlin-9", gateway.Kubelet()); !errors.Is(err, gateway.ErrNotConnected) {
			t.Errorf("error: %v", err)
		}
		c, err := l.gw.Dial(t.Context(), "berlin-1", gateway.Kubelet())
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, []byte("in process"))
		if n := l.gw.Sessions()[0].Streams; n != 1 {
			t.Errorf("%d streams", n)
		}
		c.Close()
		c.Close()
		if n := l.gw.Sessions()[0].Streams; n != 0 {
			t.Errorf("%d streams after close", n)
		}
	})
}

// Fifty connections whose clients never read must not hold up others.
func TestStalledReadersBlockNobody(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", func(c net.Conn) {
			first := make([]byte, 1)
			if _, err := io.ReadFull(c, first); err != nil {
				return
			}
			if first[0] == 'e' {
				echo(c)
				return
			}
			chunk := make([]byte, 32<<10)
			for {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		}, nil)
		var stalled []net.Conn
		for range 50 {
			c := l.connected("berlin-1:10250")
			io.WriteString(c, "flood")
			stalled = append(stalled, c)
		}
		// Everything that can be sent has been when a minute has passed.
		<-time.After(time.Minute)
		for range 20 {
			start := time.Now()
			c := l.connected("berlin-1:10250")
			io.WriteString(c, "e")
			roundTrip(t, c, bytes.Repeat([]byte("y"), 100<<10))
			if d := time.Since(start); d > time.Second {
				t.Fatalf("took %s beside stalled readers", d)
			}
			c.Close()
		}
		for _, c := range stalled {
			c.Close()
		}
	})
}
