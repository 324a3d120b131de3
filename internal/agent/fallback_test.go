package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

func TestRace(t *testing.T) {
	const never = time.Hour
	refused := errors.New("refused")
	for _, tc := range []struct {
		name          string
		first, second time.Duration // until ready
		firstErr      error
		patience      time.Duration
		want          string
		after         time.Duration
		heard         bool
	}{
		{"first is quick", 60 * time.Millisecond, never, nil, quicPatience, "first", 60 * time.Millisecond, false},
		{"first lost a packet", 400 * time.Millisecond, 10 * time.Millisecond, nil, quicPatience, "first", 400 * time.Millisecond, false},
		{"first is blocked", never, 10 * time.Millisecond, nil, quicPatience, "second", quicPatience, false},
		{"first is blocked and second slow", never, 2 * time.Second, nil, quicPatience, "second", headStart + 2*time.Second, false},
		{"first fails at once", 0, 10 * time.Millisecond, refused, quicPatience, "second", 10 * time.Millisecond, false},
		{"first fails while second is ready", 500 * time.Millisecond, 10 * time.Millisecond, refused, quicPatience, "second", 500 * time.Millisecond, false},
		{"both are slow", 4 * time.Second, 3 * time.Second, nil, quicPatience, "second", headStart + 3*time.Second, false},
		{"no patience", 300 * time.Millisecond, 10 * time.Millisecond, nil, 0, "second", headStart + 10*time.Millisecond, false},
		{"first was heard and is slow", 2 * time.Second, 10 * time.Millisecond, nil, quicPatience, "first", 2 * time.Second, true},
		{"first was heard and hangs", never, 10 * time.Millisecond, nil, quicPatience, "second", heardStart + 10*time.Millisecond, true},
		{"first was heard and fails", time.Second, 10 * time.Millisecond, refused, quicPatience, "second", time.Second + 10*time.Millisecond, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				released := map[string]int{}
				dial := func(name string, after time.Duration, err error) func(context.Context) (*link, error) {
					return func(ctx context.Context) (*link, error) {
						select {
						case <-time.After(after):
						case <-ctx.Done():
							return nil, ctx.Err()
						}
						if err != nil {
							return nil, err
						}
						return &link{Session: nullSession{}, transport: Transport(name), free: func() error { released[name]++; return nil }}, nil
					}
				}
				start := time.Now()
				l, err := race(t.Context(), dial("first", tc.first, tc.firstErr), dial("second", tc.second, nil), raceRules{start: headStart, patience: tc.patience, heard: func() bool { return tc.heard }})
				if err != nil {
					t.Fatal(err)
				}
				if string(l.transport) != tc.want || time.Since(start) != tc.after {
					t.Errorf("%s after %s", l.transport, time.Since(start))
				}
				synctest.Wait()
				if released[tc.want] != 0 {
					t.Error("the winner was closed")
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		fail := func(text string) func(context.Context) (*link, error) {
			return func(context.Context) (*link, error) { return nil, errors.New(text) }
		}
		if _, err := race(t.Context(), fail("one"), fail("two"), raceRules{start: headStart, patience: quicPatience}); err == nil || err.Error() != "one\ntwo" {
			t.Errorf("error: %v", err)
		}
		// Refused by the gateway: no second, unless it might be another's answer.
		busy := func(context.Context) (*link, error) {
			return nil, fmt.Errorf("over QUIC: %w", &quic.TransportError{Remote: true, ErrorCode: quic.ConnectionRefused})
		}
		if _, err := race(t.Context(), busy, fail("two"), raceRules{start: headStart, patience: quicPatience, final: turnedAway}); err == nil || strings.Contains(err.Error(), "two") {
			t.Errorf("error: %v", err)
		}
		if _, err := race(t.Context(), busy, fail("two"), raceRules{start: headStart, patience: quicPatience}); err == nil || !strings.Contains(err.Error(), "two") {
			t.Errorf("error: %v", err)
		}
		if _, err := race(t.Context(), fail("one"), fail("two"), raceRules{start: headStart, patience: quicPatience, final: turnedAway}); err == nil || !strings.Contains(err.Error(), "two") {
			t.Errorf("error: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		stuck := func(ctx context.Context) (*link, error) { <-ctx.Done(); return nil, ctx.Err() }
		if _, err := race(ctx, stuck, stuck, raceRules{start: headStart, patience: quicPatience}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
	})
	// Where QUIC got through last it has longer, and a TCP connection is as soon there.
	synctest.Test(t, func(t *testing.T) {
		var began time.Duration
		start := time.Now()
		first := func(ctx context.Context) (*link, error) { <-ctx.Done(); return nil, ctx.Err() }
		second := func(context.Context) (*link, error) {
			began = time.Since(start)
			time.Sleep(200 * time.Millisecond)
			return &link{Session: nullSession{}, transport: TCP, free: func() error { return nil }}, nil
		}
		l, err := race(t.Context(), first, second, raceRules{start: knownStart, patience: quicPatience})
		if err != nil || l.transport != TCP || began != knownStart || time.Since(start) != quicPatience {
			t.Errorf("%v, %v, begun after %s, ready after %s", l, err, began, time.Since(start))
		}
		synctest.Wait()
	})
}

func TestProxyFromEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		at   string
		want string // "": none
		err  bool
	}{
		{"none", nil, "gw.example:443", "", false},
		{"https", map[string]string{"HTTPS_PROXY": "http://proxy:3128"}, "gw.example:443", "http://proxy:3128", false},
		{"lower case", map[string]string{"https_proxy": "proxy:3128"}, "gw.example:443", "http://proxy:3128", false},
		{"all", map[string]string{"ALL_PROXY": "http://proxy:3128"}, "192.0.2.1:443", "http://proxy:3128", false},
		{"https before all", map[string]string{"ALL_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:2"}, "192.0.2.1:443", "http://b:2", false},
		{"not for this host", map[string]string{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".example"}, "gw.example:443", "", false},
		{"not for this range", map[string]string{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "192.0.2.0/24"}, "192.0.2.1:443", "", false},
		{"not for this machine", map[string]string{"HTTPS_PROXY": "http://proxy:3128"}, "127.0.0.1:443", "", false},
		{"no URL", map[string]string{"HTTPS_PROXY": "http://user:secret@[::"}, "gw.example:443", "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			find := ProxyFromEnvironment(func(k string) string { return tc.env[k] })
			if find == nil {
				if tc.want != "" || tc.err {
					t.Error("no proxy at all")
				}
				return
			}
			u, err := find(tc.at)
			if (err != nil) != tc.err || err != nil && strings.Contains(err.Error(), "secret") {
				t.Fatal(err)
			}
			got := ""
			if u != nil {
				got = u.String()
			}
			if got != tc.want {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestDialThroughProxy(t *testing.T) {
	for _, tc := range []struct {
		name, proxy, answer string
		err                 string // part of it; "" for success
	}{
		{"works", "http://proxy:3128", "HTTP/1.1 200 OK\r\n\r\n", ""},
		{"works with headers", "http://user:secret@proxy", "HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n", ""},
		{"refused", "http://proxy", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "status 403"},
		{"wants a password", "http://proxy", "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "user and password"},
		{"not HTTP", "http://proxy", "SSH-2.0-x\r\n\r\n", "not HTTP"},
		{"ends", "http://user:secret@proxy", "HTTP/1.1 200", "EOF"},
		{"too long", "http://proxy", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxProxyAnswer), "longer than"},
		{"silent", "http://proxy", "", "deadline"},
		{"socks", "socks5://proxy", "", `scheme "socks5" is not supported`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u, err := url.Parse(tc.proxy)
				if err != nil {
					t.Fatal(err)
				}
				a, b := tunneltest.Pipe()
				request := make(chan *http.Request, 1)
				go func() {
					br := bufio.NewReader(b)
					req, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					request <- req
					if tc.answer == "" {
						io.Copy(io.Discard, br)
						return
					}
					io.WriteString(b, tc.answer+"payload")
					if tc.err == "EOF" {
						b.Close()
						return
					}
					io.Copy(io.Discard, br)
				}()
				var dialled string
				dial := func(_ context.Context, _, addr string) (net.Conn, error) { dialled = addr; return a, nil }
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				defer a.Close()
				c, err := dialThrough(ctx, dial, u, "gw.example:443")
				if tc.err != "" {
					if tc.err == "EOF" {
						tc.answer = ""
					}
					if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "secret") {
						t.Errorf("error: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				req := <-request
				if req.Method != "CONNECT" || req.URL.Host != "gw.example:443" || req.Host != "gw.example:443" {
					t.Errorf("%s %s", req.Method, req.URL)
				}
				if auth := req.Header.Get("Proxy-Authorization"); (auth == "Basic dXNlcjpzZWNyZXQ=") != (u.User != nil) {
					t.Errorf("authorization %q", auth)
				}
				if want := u.Hostname() + ":" + map[bool]string{true: "80", false: u.Port()}[u.Port() == ""]; dialled != want {
					t.Errorf("dialled %s", dialled)
				}
				p := make([]byte, 7)
				if _, err := io.ReadFull(c, p); err != nil || string(p) != "payload" {
					t.Errorf("%q, %v", p, err)
				}
				c.Close()
			})
		})
	}
}

func FuzzProxyAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"))
	f.Add([]byte("\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := strings.NewReader(string(b))
		if readProxyAnswer(r) == nil {
			head := b[:len(b)-r.Len()]
			if !strings.HasSuffix(string(head), "\r\n\r\n") || !strings.Contains(string(head), "200") {
				t.Errorf("took %q for success", head)
			}
		}
	})
}

type documents map[string][]byte

func (d documents) Load(kind string) ([]byte, error)    { return d[kind], nil }
func (d documents) Save(kind string, data []byte) error { d[kind] = data; return nil }

func TestNetworks(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	kept := documents{}
	n := networks{keep: kept}
	for i := range 2 * maxNetworks {
		at := Network{Gateway: "192.168.1.1", MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), Interface: "eth0", Prefix: "192.168.1.0/24"}
		if err := n.remember(at, TCP, now); err != nil {
			t.Fatal(err)
		}
	}
	last := Network{Gateway: "192.168.1.1", MAC: "02:00:00:00:00:7f", Interface: "eth0", Prefix: "192.168.1.0/24"}
	if err := n.remember(last, QUIC, now); err != nil {
		t.Fatal(err)
	}
	again := networks{keep: kept}
	if err := again.load(); err != nil {
		t.Fatal(err)
	}
	if len(again.list) != maxNetworks {
		t.Errorf("%d are remembered", len(again.list))
	}
	unresolved, unknown := last, last
	unresolved.MAC, unknown.MAC = "", "02:00:00:00:00:00"
	got := map[string]Transport{"last": again.transport(last), "unresolved": again.transport(unresolved), "forgotten": again.transport(unknown), "other": again.transport(Network{})}
	want := map[string]Transport{"last": QUIC, "unresolved": QUIC, "forgotten": "", "other": ""}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// What is known of a network is not lost by a look before it is resolved.
	if err := again.remember(unresolved, TCP, now); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]remembered{{last, TCP, now.UTC()}}, again.list[:1]); d != "" {
		t.Error(d)
	}
}

func FuzzNetworks(f *testing.F) {
	f.Add([]byte(`[{"network":{"gateway":"192.168.1.1","mac":"02:00:00:00:00:01","interface":"eth0","prefix":"192.168.1.0/24"},"transport":"tcp","at":"2026-01-02T03:04:05Z"}]`))
	f.Add([]byte(`[{"network":{},"transport":"carrier pigeon"}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseNetworks(b)
		if err != nil {
			return
		}
		n := networks{keep: documents{}, list: list}
		for _, r := range list {
			if got := n.transport(r.Network); got != QUIC && got != TCP {
				t.Errorf("transport %q", got)
			}
		}
		if err := n.remember(Network{Interface: "x"}, TCP, time.Unix(0, 0)); err != nil {
			t.Error(err)
		}
	})
}

// nullSession is a Session that can be closed and nothing else.
type nullSession struct{ tunnel.Session }

func (nullSession) Close(tunnel.CloseCode, string) {}
