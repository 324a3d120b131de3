package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// pollInterval is how often a wait looks at the cluster. The API is on loopback
// or one link away and an operation waits for seconds to minutes.
const pollInterval = 200 * time.Millisecond

// maxPoolName keeps <deployment>-<pool> and a site's names readable.
const maxPoolName = 40

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// fault turns an API error into one of the engine's classes.
func fault(ctx context.Context, op, object string, err error) error {
	var own *Error
	if errors.As(err, &own) {
		return err
	}
	class := Failed
	switch {
	case interrupted(ctx, err):
		class = Unfinished
	case apierrors.IsNotFound(err):
		class = NotFound
	case apierrors.IsAlreadyExists(err):
		class = AlreadyExists
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		class = Invalid
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		class = Refused
	case apierrors.ReasonForError(err) == metav1.StatusReasonUnknown:
		class = Unreachable // no answer of an apiserver at all
	}
	return &Error{Class: class, Op: op, Object: object, Err: err}
}

func poolResource(name string, spec v1alpha1.NodePoolSpec, m mark) *v1alpha1.NodePool {
	p := &v1alpha1.NodePool{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodePool"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       spec,
	}
	if m != finished {
		p.Annotations = map[string]string{unfinishedAnnotation: string(m)}
	}
	return p
}

func poolOf(clusterID string, p *v1alpha1.NodePool) *Pool {
	return &Pool{ID: clusterID + "/" + p.Name, ClusterID: clusterID, Name: p.Name, Spec: p.Spec, Status: p.Status}
}

// CreatePool declares a pool. A pool of that name that an interrupted create has
// left is gone on with; any other is AlreadyExists.
func (e *Engine) CreatePool(ctx context.Context, clusterID, name string, spec v1alpha1.NodePoolSpec) (*Pool, error) {
	const op = "create pool"
	object := clusterID + "/" + name
	if err := checkLabel("pool", name, maxPoolName); err != nil {
		return nil, &Error{Class: Invalid, Op: op, Object: object, Field: "name", Err: err}
	}
	conn, err := e.connect(ctx, op, object, clusterID)
	if err != nil {
		return nil, err
	}
	p := poolResource(name, spec, unfinishedCreate)
	err = e.create(ctx, conn, p)
	if apierrors.IsAlreadyExists(err) {
		found := &v1alpha1.NodePool{}
		if err := conn.client.Get(ctx, client.ObjectKeyFromObject(p), found); err != nil {
			return nil, fault(ctx, op, object, err)
		}
		if mark(found.Annotations[unfinishedAnnotation]) != unfinishedCreate {
			return nil, &Error{Class: AlreadyExists, Op: op, Object: object, Err: errors.New("a pool of that name exists"), ImportID: object}
		}
		err = nil
	}
	// The mark goes once the caller is about to be told: a caller that is gone by
	// now finds its pool again.
	if err == nil {
		err = e.apply(ctx, conn, poolResource(name, spec, finished))
	}
	if err != nil {
		return nil, fault(ctx, op, object, err)
	}
	return e.ReadPool(ctx, clusterID, name)
}

// ReadPool returns a pool as the cluster holds it.
func (e *Engine) ReadPool(ctx context.Context, clusterID, name string) (*Pool, error) {
	const op = "read pool"
	object := clusterID + "/" + name
	conn, err := e.connect(ctx, op, object, clusterID)
	if err != nil {
		return nil, err
	}
	p := &v1alpha1.NodePool{}
	if err := conn.client.Get(ctx, client.ObjectKey{Name: name}, p); err != nil {
		return nil, fault(ctx, op, object, err)
	}
	return poolOf(clusterID, p), nil
}

// UpdatePool brings a pool to its spec. The nodes follow through their
// controller.
func (e *Engine) UpdatePool(ctx context.Context, clusterID, name string, spec v1alpha1.NodePoolSpec) (*Pool, error) {
	const op = "update pool"
	object := clusterID + "/" + name
	conn, err := e.connect(ctx, op, object, clusterID)
	if err != nil {
		return nil, err
	}
	if err := e.apply(ctx, conn, poolResource(name, spec, finished)); err != nil {
		return nil, fault(ctx, op, object, err)
	}
	return e.ReadPool(ctx, clusterID, name)
}

// DeletePool removes a pool. It waits for nodes that are leaving, and refuses,
// with their names, if others stay.
func (e *Engine) DeletePool(ctx context.Context, clusterID, name string) error {
	const op = "delete pool"
	object := clusterID + "/" + name
	conn, err := e.connectForDelete(ctx, op, object, clusterID)
	if conn == nil || err != nil {
		return err
	}
	// Nodes that leave in the same apply may be told so a moment after the pool.
	const grace = 10 * time.Second
	began := e.opts.Now()
	err = wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		nodes := &v1alpha1.EdgeNodeList{}
		if err := conn.client.List(ctx, nodes); err != nil {
			return false, err
		}
		var staying, leaving []string
		for _, n := range nodes.Items {
			switch {
			case n.Spec.Pool != name:
			case n.DeletionTimestamp.IsZero():
				staying = append(staying, n.Name)
			default:
				leaving = append(leaving, n.Name)
			}
		}
		if len(staying) > 0 && len(leaving) == 0 && e.opts.Now().Sub(began) > grace {
			return false, &Error{Class: Refused, Op: op, Object: object,
				Err:  fmt.Errorf("these nodes belong to it: %s", strings.Join(staying, ", ")),
				Next: "Destroy them first, or in the same apply"}
		}
		return len(staying) == 0 && len(leaving) == 0, nil
	})
	if err != nil {
		return fault(ctx, op, object, err)
	}
	p := &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := conn.client.Delete(ctx, p); err != nil && !apierrors.IsNotFound(err) {
		return fault(ctx, op, object, err)
	}
	return e.waitGone(ctx, conn, op, object, p)
}

// connectForDelete connects to delete a child. A nil connection without an
// error means that the child goes, or has gone, with its cluster: that is
// destroyed, half destroyed, or lost. A stopped control plane of this machine is
// started: its children cannot leave otherwise.
func (e *Engine) connectForDelete(ctx context.Context, op, object, clusterID string) (*connection, error) {
	conn, err := e.connect(ctx, op, object, clusterID)
	if err == nil {
		return conn, nil
	}
	switch ClassOf(err) {
	case NotFound:
		return nil, nil
	case Unreachable:
		if parsed, parseErr := parseClusterID(clusterID); parseErr == nil && (e.lost(parsed) || e.destroying(parsed)) {
			return nil, nil
		}
		started, startErr := e.startStopped(ctx, clusterID)
		if startErr != nil {
			return nil, startErr
		}
		if started {
			return e.connect(ctx, op, object, clusterID)
		}
	}
	return nil, err
}

// destroying says whether the destroy of a cluster of this machine has begun.
func (e *Engine) destroying(id clusterID) bool {
	r, err := e.state.load(id)
	return err == nil && r.Phase == phaseDestroying
}

// startStopped starts the control plane of a finished cluster of this machine
// whose daemons are down.
func (e *Engine) startStopped(ctx context.Context, id string) (bool, error) {
	parsed, err := parseClusterID(id)
	if err != nil {
		return false, nil
	}
	r, err := e.state.load(parsed)
	if err != nil || r.Phase == phaseDestroying || daemonRuns(e.dirOf(r)) {
		return false, nil // the caller's own error says what is wrong
	}
	return true, e.converge(ctx, r, "start cluster")
}

// waitGone waits until an object no longer exists.
func (e *Engine) waitGone(ctx context.Context, conn *connection, op, object string, obj client.Object) error {
	err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		err := conn.client.Get(ctx, client.ObjectKeyFromObject(obj), obj)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fault(ctx, op, object, err)
	}
	return nil
}
