package restate

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/overlay"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

const (
	// agreed is how long kubelet must have been there, and the link cut: three times
	// the period in which it compares the API's status with its own
	// (pkg/kubelet/status/status_manager.go, syncPeriod).
	agreed = 30 * time.Second
	// LeaseDuration is how long kubelet counts as being there after it has renewed its
	// lease (pkg/kubelet/apis/config, nodeLeaseDurationSeconds).
	LeaseDuration = 40 * time.Second
	// window is how long the apiserver's objects are looked at: kubelet has then
	// compared them itself.
	window = 15 * time.Second
	// lookEvery is how often.
	lookEvery = 250 * time.Millisecond
	// sends is how often one object is told at most.
	sends = 3
	// atOnce is how many requests are under way together.
	atOnce = 8
	// sendTimeout bounds one: kubelet's own write may wait for it.
	sendTimeout = 10 * time.Second
)

// Options of New. Logger and Clock may be left out.
type Options struct {
	Replica  replica.Replica
	NodeName string
	// Online returns a context that lasts as long as the link does, or false.
	Online func() (context.Context, bool)
	// Kubelet is when it last renewed its lease, and since when it has done so without
	// a pause or a restart; zero: it has not.
	Kubelet func() (renewed, since time.Time)
	// Send asks the apiserver as the node.
	Send   overlay.Sender
	Clock  clock.WithDelayedExecution
	Logger *slog.Logger
}

// Teller is a node's. Run it once; its other methods may be called by any goroutine.
type Teller struct {
	options Options
	wake    chan struct{}
	slots   chan struct{} // one for each request under way

	mu sync.Mutex // guards what follows
	// cut is since when the link is, or was last; zero: since before there was a teller,
	// and as long as may be.
	cut     time.Time
	owed    map[overlay.Target]*words
	until   time.Time // of owed
	writing map[overlay.Target]int
	// sending has a channel for each request under way, closed when it is over.
	sending map[overlay.Target]chan struct{}
	// spoke are the objects of which kubelet has written since it started, or the link
	// was back.
	spoke map[overlay.Target]bool
	// told counts the patches that were taken since the link is back, refused the
	// others that were answered.
	told, refused int
}

// words are kubelet's last of an object.
type words struct {
	collection replica.Collection
	said       *replica.Object
	// looked is the version of the apiserver's that was compared last.
	looked replica.Version
	sent   int
}

// New makes the teller of a node whose link counts as cut, nobody knows since when.
func New(o Options) *Teller {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return &Teller{
		options: o, wake: make(chan struct{}, 1), slots: make(chan struct{}, atOnce),
		owed: map[overlay.Target]*words{}, writing: map[overlay.Target]int{},
		sending: map[overlay.Target]chan struct{}{}, spoke: map[overlay.Target]bool{},
	}
}

// LinkChanged tells of the link. When it is back, this comes before the replica is
// made to show anything the apiserver says. It does not block.
func (t *Teller) LinkChanged(online bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.options.Clock.Now()
	if !online {
		t.cut = now
		return
	}
	renewed, since := t.options.Kubelet()
	switch {
	case now.Sub(renewed) > LeaseDuration:
		clear(t.owed)
	case now.Sub(t.cut) < agreed:
		// Too short for anybody to have noticed. What was owed before still is.
	default:
		t.listen(!since.IsZero() && now.Sub(since) >= agreed)
		t.told, t.refused = 0, 0
	}
	clear(t.spoke)
	t.until = now.Add(window)
	t.rouse()
}

// Lifted tells that the replica shows the apiserver's objects. It does not block.
func (t *Teller) Lifted() { t.rouse() }

func (t *Teller) rouse() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Started tells that kubelet begins anew: it stands by nothing until it has written it.
func (t *Teller) Started() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.owed)
	clear(t.spoke)
}

// listen takes down what the node shows of itself, or only what kubelet has written of.
// The caller holds mu.
func (t *Teller) listen(all bool) {
	clear(t.owed)
	for _, q := range []replica.Query{
		{Resource: corev1.SchemeGroupVersion.WithResource("nodes"), Name: t.options.NodeName},
		{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Node: t.options.NodeName},
	} {
		collection, coverage := t.options.Replica.Cover(q)
		if coverage != replica.CoverWhole {
			continue
		}
		snapshot, err := t.options.Replica.Snapshot(collection)
		if err != nil {
			continue // never whole: nobody has seen it
		}
		for _, o := range snapshot.Objects {
			target := overlay.Target{Resource: q.Resource, Namespace: o.Namespace, Name: o.Name}
			if (q.Name == "" || q.Name == o.Name) && t.writing[target] == 0 && (all || t.spoke[target]) {
				t.owed[target] = &words{collection: collection, said: o}
			}
		}
	}
}

// Writes tells that kubelet writes the status of an object; done, when it has its
// answer. It waits for a request of the teller's own for that object, or ctx. Whole: the
// write says all that the teller would.
func (t *Teller) Writes(ctx context.Context, target overlay.Target, whole bool) (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing[target]++
	if over := t.sending[target]; over != nil {
		t.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
		}
		t.mu.Lock()
	}
	if whole {
		delete(t.owed, target)
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.writing[target]--; t.writing[target] == 0 {
			delete(t.writing, target)
		}
		t.spoke[target] = true
		if whole {
			delete(t.owed, target) // of a return meanwhile
		}
	}
}

// Run tells until ctx ends, and returns when no request is under way.
func (t *Teller) Run(ctx context.Context) {
	var requests sync.WaitGroup
	defer requests.Wait()
	for {
		var due <-chan time.Time
		stop := func() bool { return true }
		if t.look(ctx, &requests) {
			timer := t.options.Clock.NewTimer(lookEvery)
			due, stop = timer.C(), timer.Stop
		}
		select {
		case <-t.wake:
		case <-due:
		case <-ctx.Done():
			stop()
			return
		}
		stop()
	}
}

// look compares what is owed with what the apiserver has, as far as the node knows, and
// tells it what differs. False: nothing is owed any more.
func (t *Teller) look(ctx context.Context, requests *sync.WaitGroup) bool {
	online, ok := t.options.Online()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !ok || len(t.owed) == 0 {
		return false
	}
	if now := t.options.Clock.Now(); !now.Before(t.until) {
		clear(t.owed)
		if t.told+t.refused > 0 {
			t.options.Logger.Info("the cluster was told again how the node and its pods are", "patches", t.told, "refused", t.refused)
		}
		return false
	}
	for target, w := range t.owed {
		if t.sending[target] != nil || t.writing[target] > 0 || len(t.slots) == atOnce {
			continue
		}
		patch, err := t.differs(target, w)
		switch {
		case err != nil:
			t.options.Logger.Error("compare how an object is with how the cluster has it", "resource", target.Resource.Resource, "name", target.Name, "error", err)
			delete(t.owed, target)
		case patch != nil:
			t.slots <- struct{}{}
			w.sent++
			t.sending[target] = make(chan struct{})
			requests.Go(func() { t.send(ctx, online, target, patch) })
		}
	}
	return true
}

// differs returns the patch that makes the apiserver's object as kubelet says; nil: none
// is needed now. It forgets what kubelet's words are no longer of. The caller holds mu.
func (t *Teller) differs(target overlay.Target, w *words) ([]byte, error) {
	now, _, err := t.options.Replica.Get(w.collection, target.Namespace, target.Name)
	switch {
	case err != nil:
		return nil, err
	case now == nil, now.UID != w.said.UID:
		delete(t.owed, target)
		return nil, nil
	case now.Version.Overlay(), now.Version == w.looked:
		return nil, nil
	}
	w.looked = now.Version
	if w.sent == sends {
		delete(t.owed, target)
		return nil, nil
	}
	if target.Resource.Resource == "nodes" {
		renewed, _ := t.options.Kubelet()
		return nodePatch(now, w.said, renewed, t.options.Clock.Now())
	}
	patch, over, err := podPatch(now, w.said)
	if over {
		delete(t.owed, target)
	}
	return patch, err
}

func (t *Teller) send(ctx, online context.Context, target overlay.Target, patch []byte) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(online, cancel)()
	timer := t.options.Clock.AfterFunc(sendTimeout, cancel)
	defer timer.Stop()
	answer, err := t.options.Send(ctx, overlay.Write{
		Method: http.MethodPatch, Path: target.Path(), Type: string(types.StrategicMergePatchType), Body: patch,
	})
	if err != nil || answer.Code >= http.StatusBadRequest {
		t.options.Logger.Debug("tell the cluster how an object is", "path", target.Path(), "code", answer.Code, "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
	case answer.Code < http.StatusBadRequest:
		t.told++
	default:
		t.refused++
	}
	close(t.sending[target])
	delete(t.sending, target)
	<-t.slots
	t.rouse() // another may have waited for the slot
}
