//go:build linux

package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/gateway/process"
)

// Three gateways are replaced one after the other while connections are made at
// each of them, from the cloud and from nodes, and long ones are open: none
// fails, none is cut.
func TestRollOfAllGateways(t *testing.T) {
	const (
		nodes = 24
		drain = 60 * time.Second
		// longStream is how long one is open: well below drain.
		longStream = 4 * time.Second
		// heldFor is how long after its gateway was told to stop one is used that was
		// open before, in each direction.
		heldFor = 25 * time.Second
	)
	w := newWorld(t)
	ids := []string{"a", "b", "c"}
	w.issue(drain, ids...)
	for _, id := range ids {
		w.launch(id)
	}
	for _, id := range ids {
		w.gws[id].says("serving nodes")
		for _, key := range []string{process.KeyFile, process.ClientKey, process.AdminSocket, "egress.sock"} {
			if info, err := os.Stat(filepath.Join(w.gatewayDir(id), key)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s of gateway %s: %v, %v", key, id, info, err)
			}
		}
	}
	all := make([]*node, nodes)
	for i := range all {
		all[i] = w.enroll(fmt.Sprintf("n%d", i))
		w.connect(all[i], echo, fmt.Sprintf("127.0.0.1:%d", w.ports["a"]))
	}
	for _, n := range all {
		for _, id := range ids {
			w.eventually("node "+n.name+" at gateway "+id, func() error {
				c, err := w.dial(id, n.name+":10250")
				if err != nil {
					return err
				}
				defer c.Close()
				return say(c, "hello")
			})
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var dials, longs, upward atomic.Int64
	var mu sync.Mutex
	var failures []error
	failed := func(err error) {
		if err == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
	}
	for _, id := range ids {
		load.Go(func() { // short connections, one after the other
			for i := 0; ctx.Err() == nil; i++ {
				c, err := w.dial(id, all[i%nodes].name+":10250")
				if err == nil {
					err = say(c, "x")
					c.Close()
				}
				failed(err)
				dials.Add(1)
			}
		})
		for i := range 4 { // connections that are open while a gateway goes
			load.Go(func() {
				for j := i; ctx.Err() == nil; j++ {
					failed(func() error {
						c, err := w.dial(id, all[j%nodes].name+":10250")
						if err != nil {
							return err
						}
						defer c.Close()
						for began := time.Now(); time.Since(began) < longStream; {
							if err := say(c, "still there"); err != nil {
								return fmt.Errorf("connection of %s through %s cut after %s: %w", all[j%nodes].name, id, time.Since(began), err)
							}
							select {
							case <-time.After(100 * time.Millisecond):
							case <-ctx.Done():
								return nil
							}
						}
						return nil
					}())
					longs.Add(1)
				}
			})
		}
	}
	load.Go(func() { // connections from nodes to the apiserver
		for i := 0; ctx.Err() == nil; i++ {
			c, err := all[i%nodes].DialAPIServer(ctx)
			if err == nil {
				c.Close()
			} else if ctx.Err() == nil {
				failed(fmt.Errorf("from node %s: %w", all[i%nodes].name, err))
			}
			upward.Add(1)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	for _, id := range ids {
		old := w.gws[id]
		began := time.Now()
		if id == ids[0] { // one is enough for the time that it takes
			c, err := w.dial(id, all[0].name+":10250")
			if err != nil {
				t.Fatal(err)
			}
			up, hangUp, err := w.ask(ctx, w.heldBy(id, all))
			if err != nil {
				t.Fatal(err)
			}
			load.Go(func() {
				defer c.Close() // or the gateway would wait for it until its deadline
				failed(during(ctx, heldFor, "from the cloud", func() error { return say(c, "held") }))
			})
			load.Go(func() {
				defer hangUp()
				failed(during(ctx, heldFor, "from a node", up))
			})
		}
		next := w.launch(id)
		next.says("serving the apiserver")
		if err := old.stop(); err != nil {
			t.Errorf("gateway %s did not end well: %v\n%s", id, err, old.log.tail(10))
		}
		next.says("serving nodes")
		t.Logf("gateway %s replaced in %s", id, time.Since(began).Round(time.Millisecond))
	}
	cancel()
	load.Wait()
	t.Logf("%d short and %d long connections from the cloud, %d from nodes", dials.Load(), longs.Load(), upward.Load())
	for _, err := range failures[:min(len(failures), 10)] {
		t.Error(err)
	}
	if len(failures) > 0 {
		t.Errorf("%d failures", len(failures))
	}
	held := 0
	for _, id := range ids {
		for _, s := range w.gws[id].sessions() {
			if !s.Superseded {
				held++
			}
		}
	}
	if held != nodes {
		t.Errorf("%d of %d nodes are held", held, nodes)
	}
	if dials.Load() < 100 || upward.Load() < 100 {
		t.Error(errors.New("there was hardly any load"))
	}
}

// during does so again and again for d, and says after what time it failed.
func during(ctx context.Context, d time.Duration, what string, do func() error) error {
	for began := time.Now(); time.Since(began) < d; {
		if err := do(); err != nil {
			return fmt.Errorf("what was open %s before its gateway was told to stop was cut after %s: %w", what, time.Since(began), err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("the roll was over before the streams that were held had shown anything")
		}
	}
	return nil
}

// heldBy is a node whose session a gateway has.
func (w *world) heldBy(id string, all []*node) *node {
	w.t.Helper()
	var held *node
	w.eventually("gateway "+id+" has a node", func() error {
		for _, s := range w.gws[id].sessions() {
			i := slices.IndexFunc(all, func(n *node) bool { return n.name == s.Node })
			if i >= 0 && !s.Superseded {
				held = all[i]
				return nil
			}
		}
		return errors.New("none")
	})
	return held
}

// ask asks the apiserver from a node, and returns what does so again on the same
// connection: a second one is an error. hangUp closes it.
func (w *world) ask(ctx context.Context, n *node) (again func() error, hangUp func(), err error) {
	dialled := false
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if dialled {
				return nil, errors.New("its connection has ended")
			}
			dialled = true
			return n.DialAPIServer(ctx)
		},
		// Whether it is cut is what counts; nothing secret is asked or believed.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: false,
	}}
	again = func() error {
		r, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, "https://apiserver/version", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(r)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	return again, client.CloseIdleConnections, again()
}
