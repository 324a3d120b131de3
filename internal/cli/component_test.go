package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

// runComponent runs `edge component …` on an empty cache.
func runComponent(t *testing.T, output string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	c := newComponentCommand(componentDeps{
		Out: &out, Err: &errOut, Output: func() string { return output }, Now: time.Now,
		Options: component.Options{
			Cache: t.TempDir(), Source: component.SourceCache,
			Platform: component.Platform{OS: "linux", Arch: "amd64"},
		},
	})
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	err = c.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

func TestComponentList(t *testing.T) {
	out, _, err := runComponent(t, "table", "list", "--kubernetes", "v1.36.3")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"KUBERNETES", "kubernetes", "kube-apiserver", "absent", "coredns", "1.15.0", "pause.tar"} {
		if !strings.Contains(out, want) {
			t.Errorf("list lacks %q:\n%s", want, out)
		}
	}
	out, _, err = runComponent(t, "json", "list")
	if err != nil {
		t.Fatal(err)
	}
	var releases []struct {
		Kubernetes string
		Tested     bool
		Components []component.Status
	}
	if err := json.Unmarshal([]byte(out), &releases); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if len(releases) != 2 || releases[0].Kubernetes != "1.36.3" || !releases[0].Tested || releases[1].Tested || len(releases[0].Components) < 8 {
		t.Errorf("list is %+v", releases)
	}
}

func TestComponentErrors(t *testing.T) {
	for want, args := range map[string][]string{
		"known are 1.36.3, 1.37.1":      {"fetch", "--kubernetes", "1.2.3"},
		`unknown set of components "x"`: {"fetch", "--set", "x"},
		"lacks kubernetes 1.36.3":       {"fetch", "--kubernetes", "1.36.3", "--set", "client"},
		"cannot be made for linux-vax":  {"fetch", "--arch", "vax"},
	} {
		if _, _, err := runComponent(t, "table", args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want %q", args, err, want)
		}
	}
}

// events are those of a build.
func events(r *componentReport, at func(time.Duration)) {
	k := func(kind component.EventKind, done, total int64) component.Event {
		return component.Event{Kind: kind, Component: "etcd", Version: "3.6.8", Done: done, Total: total, Unit: component.Packages, Elapsed: 30 * time.Second}
	}
	r.event(component.Event{Kind: component.Planned, Components: []string{"etcd 3.6.8"}, Message: "not in the cache", Estimate: 100 * time.Second})
	r.event(k(component.Started, 0, 0))
	r.event(k(component.Progress, 1, 50))
	at(plainEvery)
	r.event(k(component.Progress, 25, 50))
	r.event(k(component.Progress, 26, 50))
	at(plainEvery)
	r.event(k(component.Progress, 50, 50))
	r.event(component.Event{Kind: component.Notice, Message: "look at this"})
	r.event(k(component.Installed, 0, 0))
}

func TestPlainProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	r := newComponentReport(&out, false, func() time.Time { return now })
	events(r, func(d time.Duration) { now = now.Add(d) })
	r.close()
	want := "etcd 3.6.8: not in the cache. This takes up to 2 minutes on this machine and happens once.\n" +
		"etcd 3.6.8: building\n" +
		"etcd 3.6.8: 25 of 50 packages\n" +
		"etcd 3.6.8: linking\n" +
		"look at this\n" +
		"etcd 3.6.8: ready after 30s\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBarsEndWithWhatTheyShow(t *testing.T) {
	for name, cut := range map[string]bool{"finished": false, "interrupted": true} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			r := newComponentReport(&out, true, time.Now)
			events(r, func(time.Duration) {})
			if cut {
				r.event(component.Event{Kind: component.Progress, Component: "runc", Version: "1.5.2", Done: 1, Total: 9})
			}
			r.close() // must return
			if !strings.Contains(out.String(), "look at this") {
				t.Errorf("a notice was lost: %q", out.String())
			}
		})
	}
}
