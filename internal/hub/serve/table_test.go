package serve

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const tableAccept = "application/json;as=Table;v=v1;g=meta.k8s.io"

// table reads one.
func (r *rig) table(path, accept string) metav1.Table {
	r.t.Helper()
	response, body := r.get(path, accept)
	var t metav1.Table
	if err := json.Unmarshal(body, &t); err != nil || response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != wire.MediaJSON {
		r.t.Fatalf("%s: %s %v %s", path, response.Status, err, body)
	}
	if t.Kind != "Table" || t.APIVersion != "meta.k8s.io/v1" || len(t.ColumnDefinitions) == 0 {
		r.t.Fatalf("%s: %s", path, body)
	}
	return t
}

// rowNames are the names in a table's cells, and what they carry beside.
func rowNames(t metav1.Table) string {
	var names []string
	for _, row := range t.Rows {
		var o metav1.PartialObjectMetadata
		if row.Object.Raw != nil && json.Unmarshal(row.Object.Raw, &o) != nil {
			return "broken"
		}
		names = append(names, strings.TrimSuffix(fmt.Sprintf("%v:%s", row.Cells[0], o.Kind), ":PartialObjectMetadata"))
	}
	return strings.Join(names, " ")
}

func TestTables(t *testing.T) {
	r := newRig(t, nil)
	r.load(20, service("bar", "b", "10.0.0.2", 6, nil), service("shop", "a", "10.0.0.1", 12, map[string]string{"app": "a"}),
		service("shop", "c", "None", 9, map[string]string{"app": "c"}))
	const all = "/api/v1/services"
	for _, c := range []struct{ path, want, version string }{
		{all, "b a c", "20"},
		{all + "?labelSelector=app", "a c", "20"},
		{all + "?fieldSelector=spec.clusterIP%3DNone", "c", "20"},
		{"/api/v1/namespaces/shop/services", "a c", "20"},
		{"/api/v1/namespaces/none/services", "", "20"},
		{all + "?includeObject=None", "b: a: c:", "20"},
		{all + "?includeObject=Object", "b:Service a:Service c:Service", "20"},
		{"/api/v1/namespaces/shop/services/a?resourceVersion=0", "a", "12"},
	} {
		got := r.table(c.path, tableAccept)
		if rowNames(got) != c.want || got.ResourceVersion != c.version || got.Rows == nil {
			t.Errorf("%s: %q at %q, want %q at %q", c.path, rowNames(got), got.ResourceVersion, c.want, c.version)
		}
	}
	got := r.table("/api/v1/namespaces/shop/services/a?resourceVersion=0", tableAccept)
	checkPartial(t, got.Rows[0].Object.Raw, service("shop", "a", "", 12, map[string]string{"app": "a"}).ObjectMeta)
	// In pages: each is a table of its own.
	var pages []string
	for path := all + "?limit=2"; ; {
		page := r.table(path, tableAccept)
		pages = append(pages, rowNames(page))
		if page.Continue == "" {
			break
		}
		if page.RemainingItemCount == nil || *page.RemainingItemCount != 1 {
			t.Errorf("remaining: %v", page.RemainingItemCount)
		}
		path = all + "?limit=2&continue=" + url.QueryEscape(page.Continue)
	}
	if d := cmp.Diff([]string{"b a", "c"}, pages); d != "" {
		t.Errorf("pages: %s", d)
	}
	response, body := r.get(all+"?includeObject=Everything", tableAccept)
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("a wrong includeObject: %s %s", response.Status, body)
	}
	if response, _ := r.get(all+"?includeObject=Everything", wire.MediaJSON); response.StatusCode != http.StatusOK {
		t.Errorf("includeObject where no table is asked for: %s", response.Status)
	}
}

// TestTablesOfCustomResources have a name and an age, whatever they are.
func TestTablesOfCustomResources(t *testing.T) {
	r := newRig(t, nil)
	r.cache.Open(widgets, widgetKind)
	raw := []byte(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"namespace":"shop","name":"w","resourceVersion":"7","uid":"u"},"spec":{"a":1}}`)
	o := &replica.Object{Namespace: "shop", Name: "w", Version: 7, Media: wire.MediaJSON, Raw: raw, Message: raw}
	if err := r.cache.Load(widgets, replica.Content{Version: 9, Objects: []*replica.Object{o}}); err != nil {
		t.Fatal(err)
	}
	got := r.table("/apis/example.com/v1/widgets?includeObject=Object", tableAccept)
	if rowNames(got) != "w:Widget" || got.ResourceVersion != "9" || len(got.ColumnDefinitions) != 2 || !strings.Contains(string(got.Rows[0].Object.Raw), `"spec":{"a":1}`) {
		t.Errorf("got %+v", got)
	}
	w := r.tables("/apis/example.com/v1/widgets?"+streaming, tableAccept)
	w.expect("ADDED w @7, columns", "BOOKMARK  @9, ends")
}

// tables reads a watch of tables; its events are "TYPE name @version".
func (r *rig) tables(path, accept string) *watching {
	r.t.Helper()
	response := r.open(path, accept)
	w := &watching{t: r.t, response: response, events: make(chan string, 64)}
	if ct := response.Header.Get("Content-Type"); ct != wire.MediaJSON {
		r.t.Errorf("Content-Type %q", ct)
	}
	go func() {
		defer close(w.events)
		for events := json.NewDecoder(response.Body); ; {
			var event struct {
				Type   watch.EventType
				Object metav1.Table
			}
			if events.Decode(&event) != nil {
				return
			}
			if event.Type == watch.Error {
				w.events <- "ERROR " + event.Object.Kind
				continue
			}
			text := fmt.Sprintf("%s of %d rows", event.Type, len(event.Object.Rows))
			if len(event.Object.Rows) == 1 {
				row := event.Object.Rows[0]
				text = fmt.Sprintf("%s %v @%s", event.Type, row.Cells[0], event.Object.ResourceVersion)
				var o metav1.PartialObjectMetadata
				if row.Object.Raw != nil && json.Unmarshal(row.Object.Raw, &o) == nil && o.Annotations[metav1.InitialEventsAnnotationKey] != "" {
					text += ", ends"
				}
			}
			if len(event.Object.ColumnDefinitions) > 0 {
				text += ", columns"
			}
			w.events <- text
		}
	}()
	return w
}

// TestWatchTables: every event is a table of one row, and the first of a watch says
// the columns, to each watch anew.
func TestWatchTables(t *testing.T) {
	r := newRig(t, nil)
	in := map[string]string{"in": ""}
	a1, b := service("shop", "a", "10.0.0.1", 4, in), service("shop", "b", "None", 5, nil)
	r.load(6, a1, b)
	const all = "/api/v1/services?"
	begun := r.tables(all+streaming, tableAccept)
	begun.expect("ADDED a @4, columns", "ADDED b @5", "BOOKMARK  @6, ends")
	bare := r.tables(all+streaming+"&includeObject=None", tableAccept+",application/json")
	bare.expect("ADDED a @4, columns", "ADDED b @5", "BOOKMARK  @6, ends")
	resumed := r.tables(all+"watch=1&resourceVersion=6", tableAccept)
	again := r.tables(all+"watch=1&resourceVersion=6", tableAccept)
	selected := r.tables(all+"watch=1&resourceVersion=6&labelSelector=in", tableAccept)
	plain := r.watch(all+"watch=1&resourceVersion=6", wire.MediaJSON)
	a2 := service("shop", "a", "10.0.0.1", 7, nil)
	r.publish(a1, a2)
	r.publish(a2, gone(a2, 8))
	begun.expect("MODIFIED a @7", "DELETED a @8")
	bare.expect("MODIFIED a @7", "DELETED a @8")
	resumed.expect("MODIFIED a @7, columns", "DELETED a @8")
	again.expect("MODIFIED a @7, columns", "DELETED a @8")
	selected.expect("DELETED a @7, columns")
	plain.expect("MODIFIED shop/a@7", "DELETED shop/a@8")
	r.tables(all+"watch=1&resourceVersion=1", tableAccept).expect("ERROR Status")
}

// TestTablesSayHowLongAgo by the server's clock, also of an event that is not new.
func TestTablesSayHowLongAgo(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Unix(1_900_000_000, 0))
	r := newRig(t, clk)
	r.load(6)
	s := service("shop", "a", "10.0.0.1", 7, nil)
	s.CreationTimestamp = metav1.NewTime(clk.Now())
	r.publish(nil, s)
	for _, want := range []string{"0s", "5m"} {
		if got := r.table("/api/v1/services", tableAccept).Rows[0].Cells[5]; got != want {
			t.Errorf("listed: age %v, want %s", got, want)
		}
		response := r.open("/api/v1/services?watch=1&resourceVersion=6", tableAccept)
		var event struct{ Object metav1.Table }
		if err := json.NewDecoder(response.Body).Decode(&event); err != nil {
			t.Fatal(err)
		}
		if got := event.Object.Rows[0].Cells[5]; got != want {
			t.Errorf("watched: age %v, want %s", got, want)
		}
		response.Body.Close()
		clk.Step(5 * time.Minute)
	}
}

// TestTablesOfPods: what the replica has of a pod is enough for its row.
func TestTablesOfPods(t *testing.T) {
	r := newRig(t, nil)
	r.stale.Store(true)
	r.cache.Open(ownPods, podKind)
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", ResourceVersion: "3"},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "a"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.1.0.7"}}, ContainerStatuses: []corev1.ContainerStatus{
			{Name: "a", RestartCount: 2, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}},
		}},
	}
	if err := r.cache.Load(ownPods, replica.Content{Version: 9, Objects: []*replica.Object{pb(t, pod)}}); err != nil {
		t.Fatal(err)
	}
	got := r.table("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&limit=500", tableAccept)
	want := []any{"p", "0/1", "CrashLoopBackOff", "2", "<unknown>", "10.1.0.7", "n1", "<none>", "<none>"}
	if d := cmp.Diff(want, got.Rows[0].Cells); d != "" {
		t.Error(d)
	}
}
