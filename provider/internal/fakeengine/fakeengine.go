// Package fakeengine is an engine in memory for the provider's tests: it keeps
// what it is given, fills in what a real engine chooses, and fails where a test
// tells it to. It starts nothing and holds no rule of its own about clusters.
package fakeengine

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

// Secrets that the fake hands out, for tests that look for them.
const (
	ClientKey = "-----BEGIN EC PRIVATE KEY-----\nfake-client-key\n-----END EC PRIVATE KEY-----\n"
)

// Fault is what goes wrong in one call.
type Fault struct {
	// Err is what the call returns.
	Err error
	// Recorded: the object exists nevertheless, with Status, and is returned
	// beside the error.
	Recorded bool
	Status   string
	// Block: the call first waits until its context ends, and returns Err with
	// the context's own error inside.
	Block bool
}

// Engine is the fake.
type Engine struct {
	mu       sync.Mutex // guards all below
	clusters map[string]*engine.Cluster
	pools    map[string]*engine.Pool
	nodes    map[string]*engine.Node
	look     engine.NodeSummary
	units    map[string]*engine.Unit
	faults   map[string][]Fault
	calls    []string
	uids     int
	down     bool
	expiry   time.Time
}

var _ entity.Engine = &Engine{}

// New returns an empty engine.
func New() *Engine {
	return &Engine{
		clusters: map[string]*engine.Cluster{},
		pools:    map[string]*engine.Pool{},
		nodes:    map[string]*engine.Node{},
		units:    map[string]*engine.Unit{},
		faults:   map[string][]Fault{},
		expiry:   time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// Fail makes the next call of an operation ("CreateCluster") fail.
func (e *Engine) Fail(op string, f Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults[op] = append(e.faults[op], f)
}

// SetUnreachable cuts every cluster off, or back.
func (e *Engine) SetUnreachable(down bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = down
}

// Calls returns the operations called so far that match op; all for "".
func (e *Engine) Calls(op string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if op == "" {
		return len(e.calls)
	}
	n := 0
	for _, c := range e.calls {
		if c == op {
			n++
		}
	}
	return n
}

// ClusterIDs returns the ids of the clusters that exist, sorted.
func (e *Engine) ClusterIDs() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []string
	for id := range e.clusters {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Empty says whether nothing exists.
func (e *Engine) Empty() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.clusters)+len(e.pools)+len(e.nodes)+len(e.units) == 0
}

// Clear destroys everything behind Terraform's back.
func (e *Engine) Clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.clusters)
	clear(e.pools)
	clear(e.nodes)
	clear(e.units)
}

// Cluster, Pool, Node and Unit change the only object of their kind behind
// Terraform's back. They do nothing where there is none.
func (e *Engine) Cluster(change func(*engine.Cluster)) { changeAll(e, e.clusters, change) }

// Pool changes pools.
func (e *Engine) Pool(change func(*engine.Pool)) { changeAll(e, e.pools, change) }

// Look sets what LookUpNode says of nodes beside what is declared of them.
func (e *Engine) Look(s engine.NodeSummary) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.look = s
}

// Node changes nodes.
func (e *Engine) Node(change func(*engine.Node)) { changeAll(e, e.nodes, change) }

// Unit changes unit deployments.
func (e *Engine) Unit(change func(*engine.Unit)) { changeAll(e, e.units, change) }

func changeAll[O any](e *Engine, m map[string]*O, change func(*O)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range m {
		change(o)
	}
}

// enter notes a call and returns the fault it meets, if any. e.mu is held when
// it returns, and must be released by the caller.
func (e *Engine) enter(ctx context.Context, op, object string) *Fault {
	e.mu.Lock()
	e.calls = append(e.calls, op)
	if e.down {
		return &Fault{Err: &engine.Error{Class: engine.Unreachable, Op: "reach", Object: object, Err: errors.New("connection refused")}}
	}
	queue := e.faults[op]
	if len(queue) == 0 {
		return nil
	}
	f := queue[0]
	e.faults[op] = queue[1:]
	if f.Block {
		e.mu.Unlock()
		<-ctx.Done()
		e.mu.Lock()
		f.Err = &engine.Error{Class: engine.Unfinished, Op: op, Object: object, Err: ctx.Err()}
	}
	return &f
}

func notFound(op, object string) error {
	return &engine.Error{Class: engine.NotFound, Op: op, Object: object, Err: errors.New("it does not exist")}
}

func exists(op, object string) error {
	return &engine.Error{Class: engine.AlreadyExists, Op: op, Object: object,
		Err: errors.New("it exists"), ImportID: object}
}

// put stores what make returns under id, as the fault says.
func put[O any](m map[string]*O, id string, fault *Fault, status func(*O, string), object *O) (*O, error) {
	if fault == nil {
		m[id] = object
		return clone(object), nil
	}
	if !fault.Recorded {
		return nil, fault.Err
	}
	status(object, fault.Status)
	m[id] = object
	return clone(object), fault.Err
}

func clone[O any](o *O) *O {
	c := *o
	return &c
}

func get[O any](m map[string]*O, id, op string, fault *Fault) (*O, error) {
	o, ok := m[id]
	switch {
	case fault != nil && !fault.Recorded:
		return nil, fault.Err
	case !ok:
		return nil, notFound(op, id)
	case fault != nil:
		return clone(o), fault.Err
	}
	return clone(o), nil
}

func remove[O any](m map[string]*O, id, op string, fault *Fault) error {
	if fault != nil {
		return fault.Err
	}
	if _, ok := m[id]; !ok {
		return notFound(op, id)
	}
	delete(m, id)
	return nil
}
