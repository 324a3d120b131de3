package hub

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

var wantEndpoint = netip.MustParseAddrPort("169.254.20.11:443")

// podRig is a ServePods between a pod and a TCP listener as apiserver.
func podRig(t *testing.T) (r *rig, address string, upstream net.Listener, stop func() error) {
	t.Helper()
	r = newRig(t, nil)
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { upstream.Close() })
	h := *r.hub
	h.config.DialUpstream = func(ctx context.Context) (net.Conn, error) {
		r.mu.Lock()
		cut := r.cut
		r.mu.Unlock()
		if cut {
			return nil, errors.New("the link is cut")
		}
		return new(net.Dialer).DialContext(ctx, "tcp", upstream.Addr().String())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.ServePods(ctx, listener) }()
	stop = func() error {
		cancel()
		select {
		case err := <-done:
			done <- err
			return err
		case <-time.After(patience):
			return errors.New("ServePods does not end")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return r, listener.Addr().String(), upstream, stop
}

func dialPod(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func accept(t *testing.T, l net.Listener) *net.TCPConn {
	t.Helper()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// TestPodHalfClose: each side may end its own direction while the other goes on.
func TestPodHalfClose(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	for _, first := range []string{"pod", "apiserver"} {
		_, address, upstream, _ := podRig(t)
		a := dialPod(t, address)
		b := accept(t, upstream)
		if first == "apiserver" {
			a, b = b, a
		}
		go func() {
			io.WriteString(a, big)
			a.CloseWrite()
		}()
		got, err := io.ReadAll(b)
		if err != nil || string(got) != big {
			t.Fatalf("%s first: %d bytes, %v", first, len(got), err)
		}
		go func() {
			io.WriteString(b, big)
			b.CloseWrite()
		}()
		if got, err = io.ReadAll(a); err != nil || string(got) != big {
			t.Fatalf("after %s's end: %d bytes, %v", first, len(got), err)
		}
	}
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// TestPodReset: a break is passed on as one, in both directions, and so is a cut
// link.
func TestPodReset(t *testing.T) {
	r, address, upstream, _ := podRig(t)
	pod := dialPod(t, address)
	server := accept(t, upstream)
	server.SetLinger(0)
	server.Close()
	if _, err := pod.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("the apiserver's reset: pod reads %v", err)
	}
	pod = dialPod(t, address)
	server = accept(t, upstream)
	pod.SetLinger(0)
	pod.Close()
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Error("the pod's reset: the apiserver reads on")
	}
	r.setCut(true)
	// The reset may be as early as while the pod still connects.
	c, err := net.Dial("tcp", address)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !isReset(err) {
		t.Errorf("a cut link: pod gets %v", err)
	}
}

func TestServePodsEnds(t *testing.T) {
	_, address, upstream, stop := podRig(t)
	pod := dialPod(t, address)
	accept(t, upstream)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("the listener goes on")
	}
}

// TestPodSlowDial: a dial that nobody answers in time costs the pod that asked for it
// and nobody else: the apiserver is asked whether it is there. What the gateway says
// comes before that. A broken session is a cut.
func TestPodSlowDial(t *testing.T) {
	for _, tt := range []struct {
		name    string
		dial    func(context.Context) (net.Conn, error)
		online  bool
		doubted bool // the apiserver is asked once the dial has failed
	}{
		{"the gateway answers late", func(ctx context.Context) (net.Conn, error) {
			select {
			case <-time.After(tunnel.GatewayDialTimeout):
				return nil, &tunnel.StatusError{Status: tunnel.StatusTimeout}
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}, true, false},
		{"nobody answers", func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, true, true},
		{"the session is broken", func(context.Context) (net.Conn, error) { return nil, io.ErrClosedPipe }, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := slog.New(slog.DiscardHandler)
				var changes []link.State
				var probed time.Time
				gone := false
				monitor := link.New(link.Options{
					Logger: log, OnChange: func(s link.State) { changes = append(changes, s) },
					Probe: func(context.Context) error {
						probed = time.Now()
						if gone {
							return io.ErrClosedPipe
						}
						return nil
					},
				})
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- monitor.Run(ctx) }()
				monitor.Session(true)
				time.Sleep(5 * time.Second) // out of step with the probes
				synctest.Wait()
				if len(changes) != 1 || !changes[0].Online {
					t.Fatalf("%+v", changes)
				}
				gone = !tt.online
				h := &Hub{log: log, clock: clock.RealClock{}, pods: newPodConnections(log, clock.RealClock{}), local: &local{link: monitor}}
				h.config.DialUpstream = tt.dial
				pod, accepted := tunneltest.Pipe()
				here := newHandOff(&net.TCPAddr{})
				given := make(chan struct{})
				go func() {
					if c, err := here.Accept(); err == nil {
						c.Close()
						close(given)
					}
				}()
				h.carry(ctx, accepted, here)
				synctest.Wait()
				if doubted := time.Since(probed) == 0; doubted != tt.doubted {
					t.Errorf("the apiserver was asked %s before, want at once: %v", time.Since(probed), tt.doubted)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if online := monitor.State().Online; online != tt.online || online != (len(changes) == 1) {
					t.Errorf("%+v", changes)
				}
				if _, err := pod.Read(make([]byte, 1)); err == nil {
					t.Error("the pod's connection is open")
				}
				here.Close()
				select {
				case <-given:
					if tt.online {
						t.Error("the node itself was to answer")
					}
				default:
					if !tt.online {
						t.Error("the node itself was not asked")
					}
				}
				stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
