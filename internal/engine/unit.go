package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// unfinishedAnnotation marks an object whose create or update has not come to
// its end. Only an unfinished create is gone on with by a create: anything else
// of that name belongs to whoever finished it.
const unfinishedAnnotation = "edgewright.dev/unfinished"

// mark is the value of unfinishedAnnotation.
type mark string

const (
	finished         mark = ""
	unfinishedCreate mark = "create"
	unfinishedUpdate mark = "update"
)

func (s UnitSpec) id() string { return s.ClusterID + "/" + s.Namespace + "/" + s.Name }

func unitResource(s UnitSpec, m mark) *v1alpha1.UnitDeployment {
	u := &v1alpha1.UnitDeployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "UnitDeployment"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name},
		Spec:       s.Spec,
	}
	if m != finished {
		u.Annotations = map[string]string{unfinishedAnnotation: string(m)}
	}
	return u
}

func unitOf(clusterID string, u *v1alpha1.UnitDeployment) *Unit {
	status := StatusReady
	if u.Annotations[unfinishedAnnotation] != "" {
		status = StatusIncompletePrefix + "rollout"
	}
	return &Unit{ID: clusterID + "/" + u.Namespace + "/" + u.Name, ClusterID: clusterID, Namespace: u.Namespace, Name: u.Name, Spec: u.Spec, Status: status, Detail: u.Status}
}

// CreateUnit declares a unit deployment and, where asked, waits for its rollout.
func (e *Engine) CreateUnit(ctx context.Context, s UnitSpec) (*Unit, error) {
	const op = "create unit deployment"
	conn, err := e.prepareUnit(ctx, op, s)
	if err != nil {
		return nil, err
	}
	u := unitResource(s, unfinishedCreate)
	err = e.create(ctx, conn, u)
	if apierrors.IsAlreadyExists(err) {
		found := &v1alpha1.UnitDeployment{}
		if err := conn.client.Get(ctx, client.ObjectKeyFromObject(u), found); err != nil {
			return nil, fault(ctx, op, s.id(), err)
		}
		if mark(found.Annotations[unfinishedAnnotation]) != unfinishedCreate {
			return nil, &Error{Class: AlreadyExists, Op: op, Object: s.id(), Err: errors.New("a unit deployment of that name exists"), ImportID: s.id()}
		}
		err = e.apply(ctx, conn, unitResource(s, unfinishedCreate))
	}
	if err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	return e.finishUnit(ctx, conn, op, s)
}

// ReadUnit returns a unit deployment as the cluster holds it.
func (e *Engine) ReadUnit(ctx context.Context, clusterID, namespace, name string) (*Unit, error) {
	const op = "read unit deployment"
	object := clusterID + "/" + namespace + "/" + name
	conn, err := e.connect(ctx, op, object, clusterID)
	if err != nil {
		return nil, err
	}
	u := &v1alpha1.UnitDeployment{}
	if err := conn.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, u); err != nil {
		return nil, fault(ctx, op, object, err)
	}
	return unitOf(clusterID, u), nil
}

// UpdateUnit brings a unit deployment to its spec and, where asked, waits for
// the rollout.
func (e *Engine) UpdateUnit(ctx context.Context, s UnitSpec) (*Unit, error) {
	const op = "update unit deployment"
	conn, err := e.prepareUnit(ctx, op, s)
	if err != nil {
		return nil, err
	}
	if err := e.apply(ctx, conn, unitResource(s, unfinishedUpdate)); err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	return e.finishUnit(ctx, conn, op, s)
}

// DeleteUnit removes a unit deployment and waits until its workloads are gone
// from the API. Pods of cut nodes are not waited for: they end when their node
// is back.
func (e *Engine) DeleteUnit(ctx context.Context, clusterID, namespace, name string) error {
	const op = "delete unit deployment"
	object := clusterID + "/" + namespace + "/" + name
	conn, err := e.connectForDelete(ctx, op, object, clusterID)
	if conn == nil || err != nil {
		return err
	}
	u := &v1alpha1.UnitDeployment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if err := conn.client.Delete(ctx, u, client.PropagationPolicy(metav1.DeletePropagationBackground)); err != nil && !apierrors.IsNotFound(err) {
		return fault(ctx, op, object, err)
	}
	return e.waitGone(ctx, conn, op, object, u)
}

// prepareUnit connects and refuses pools that do not exist, by name, before
// anything is written.
func (e *Engine) prepareUnit(ctx context.Context, op string, s UnitSpec) (*connection, error) {
	if err := checkLabel("unit deployment", s.Name, 52); err != nil {
		return nil, &Error{Class: Invalid, Op: op, Object: s.id(), Field: "name", Err: err}
	}
	conn, err := e.connect(ctx, op, s.id(), s.ClusterID)
	if err != nil {
		return nil, err
	}
	pools := &v1alpha1.NodePoolList{}
	if err := conn.client.List(ctx, pools); err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	known := map[string]bool{}
	for _, p := range pools.Items {
		known[p.Name] = true
	}
	for _, p := range s.Spec.Pools {
		if !known[p.Name] {
			return nil, &Error{Class: Invalid, Op: op, Object: s.id(), Field: "pools",
				Err: unknownPool(p.Name, sortedKeys(known))}
		}
	}
	return conn, nil
}

func unknownPool(name string, known []string) error {
	if len(known) == 0 {
		return fmt.Errorf("pool %q does not exist, nor does any other", name)
	}
	return fmt.Errorf("pool %q does not exist; these do: %s", name, strings.Join(known, ", "))
}

// finishUnit waits for the rollout and takes the unfinished mark away.
func (e *Engine) finishUnit(ctx context.Context, conn *connection, op string, s UnitSpec) (*Unit, error) {
	u := &v1alpha1.UnitDeployment{}
	key := client.ObjectKey{Namespace: s.Namespace, Name: s.Name}
	if err := conn.client.Get(ctx, key, u); err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	if s.WaitRollout {
		err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
			if err := conn.client.Get(ctx, key, u); err != nil {
				return false, err
			}
			if u.Status.ObservedGeneration < u.Generation {
				return false, nil
			}
			if c := meta.FindStatusCondition(u.Status.Conditions, v1alpha1.ConditionUnitsFailed); c != nil && c.Status == metav1.ConditionTrue {
				return false, &Error{Class: Failed, Op: op, Object: s.id(), Err: errors.New(c.Message),
					Next: fmt.Sprintf("Correct it and apply again; `edge kubectl -c %s -n %s get pods` shows the pods", s.ClusterID, s.Namespace)}
			}
			return meta.IsStatusConditionTrue(u.Status.Conditions, v1alpha1.ConditionUnitsReady), nil
		})
		if err != nil {
			partial := unitOf(s.ClusterID, u)
			if interrupted(ctx, err) {
				return partial, &Error{Class: Unfinished, Op: op, Object: s.id(), Err: fmt.Errorf("the wait for its rollout ended: %s", rolloutSummary(u)), Next: "Apply again to wait on"}
			}
			return partial, fault(ctx, op, s.id(), err)
		}
	}
	if err := e.apply(ctx, conn, unitResource(s, finished)); err != nil {
		return unitOf(s.ClusterID, u), fault(ctx, op, s.id(), err)
	}
	if err := conn.client.Get(ctx, key, u); err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	return unitOf(s.ClusterID, u), nil
}

func rolloutSummary(u *v1alpha1.UnitDeployment) string {
	var parts []string
	for _, p := range u.Status.Pools {
		part := fmt.Sprintf("%s %s (%d of %d ready)", p.Name, p.State, p.ReadyReplicas, p.Replicas)
		if p.Message != "" {
			part += ": " + p.Message
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return "no unit has been reported on yet"
	}
	return strings.Join(parts, "; ")
}
