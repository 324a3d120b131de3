package enroll

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// claim gives the name to the key: it binds the token, makes the enrolment
// record where none was declared, and writes the key into it. Every write is
// conditional on what was read, and what lost a race is looked at afresh.
func (s *Service) claim(ctx context.Context, token Token, req Request, key string) (*Record, error) {
	var lastErr error
	for range conflictTries {
		record, err := s.claimOnce(ctx, token, req, key)
		if err == nil {
			return record, nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
		lastErr = err
	}
	return nil, lastErr
}

func (s *Service) claimOnce(ctx context.Context, token Token, req Request, key string) (*Record, error) {
	record, err := s.tokens.find(ctx, token)
	if err != nil {
		return nil, err
	}
	if record.UsedBy != "" && record.UsedBy != key {
		return nil, refuse(CodeTokenUsed, "the join token was used by another device; a token joins one device")
	}
	if record.Name != "" && record.Name != req.Name {
		return nil, refuse(CodeNameConflict, "the join token is for node "+record.Name)
	}
	var pool v1alpha1.NodePool
	if err := s.edge.Get(ctx, client.ObjectKey{Name: record.Pool}, &pool); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, refuse(CodePoolUnknown, "pool "+record.Pool+" does not exist")
		}
		return nil, fmt.Errorf("look up pool %s: %w", record.Pool, err)
	}
	if !pool.DeletionTimestamp.IsZero() {
		return nil, refuse(CodePoolUnknown, "pool "+record.Pool+" is being deleted")
	}
	node, err := s.readNode(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	// Whether the name can be had is asked before the token is bound, so that
	// a wrong name does not spend it.
	if node != nil {
		if err := mayHold(node, record, key); err != nil {
			return nil, err
		}
	}
	if err := s.nameIsFree(ctx, req.Name, node); err != nil {
		return nil, err
	}
	if err := s.tokens.use(ctx, record, req.Name, key); err != nil {
		return nil, err
	}
	if node == nil {
		node = &v1alpha1.EdgeNode{
			ObjectMeta: metav1.ObjectMeta{Name: req.Name, Finalizers: []string{v1alpha1.NodeFinalizer}},
			Spec:       v1alpha1.EdgeNodeSpec{Pool: record.Pool},
		}
		if err := s.edge.Create(ctx, node); err != nil {
			return nil, fmt.Errorf("record node %s: %w", req.Name, err)
		}
	}
	return record, s.giveKey(ctx, node, req, key)
}

func (s *Service) readNode(ctx context.Context, name string) (*v1alpha1.EdgeNode, error) {
	var node v1alpha1.EdgeNode
	if err := s.edge.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("look up node %s: %w", name, err)
	}
	return &node, nil
}

// IsEdgeNode says whether a Node was registered by a node of ours: it carries
// the taint that the policies want at registration, or the node controller's
// record. Where a cluster has other nodes, too, theirs carry neither.
func IsEdgeNode(node *corev1.Node) bool {
	if _, managed := node.Annotations[v1alpha1.ManagedAnnotation]; managed {
		return true
	}
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.UnplacedTaint })
}

// nameIsFree refuses a first claim to the name of a Node that is not ours: its
// certificate would let the device pass for a node of the cluster proper.
func (s *Service) nameIsFree(ctx context.Context, name string, edge *v1alpha1.EdgeNode) error {
	if edge != nil && edge.Status.Key != "" {
		return nil
	}
	node, err := s.kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("look for Node object %s: %w", name, err)
	case IsEdgeNode(node):
		return nil
	}
	return refuse(CodeNameConflict, "a node "+name+" exists that did not join this way")
}

// mayHold decides whether a key that comes with a token may hold a name that
// has an enrolment record.
func mayHold(node *v1alpha1.EdgeNode, record *Record, key string) error {
	switch {
	case !node.DeletionTimestamp.IsZero():
		return refuse(CodeNameConflict, "node "+node.Name+" is being removed; join again when it is gone")
	case node.Spec.Pool != record.Pool:
		return refuse(CodeNameConflict, "node "+node.Name+" is declared for another pool than the join token's")
	case slices.Contains(node.Status.RevokedKeys, key):
		return refuse(CodeNameConflict, "this device's key was revoked for node "+node.Name)
	case node.Status.Key == "", node.Status.Key == key:
		return nil
	case record.ByOperator:
		// The operator named this node for this token: new hardware takes over
		// the name.
		return nil
	}
	return refuse(CodeNameConflict, "another device holds the name "+node.Name+
		"; to replace it, mint a join token for exactly this name")
}

// giveKey writes the key into the enrolment record; the key it replaces may
// never hold the name again. A conflict error means: look again.
func (s *Service) giveKey(ctx context.Context, node *v1alpha1.EdgeNode, req Request, key string) error {
	if old := node.Status.Key; old != "" && old != key {
		node.Status.RevokedKeys = append(node.Status.RevokedKeys, old)
	}
	if node.Status.Key == key && node.Status.EngineVersion == req.EngineVersion && node.Status.Architecture == req.Architecture {
		return nil
	}
	node.Status.Key = key
	node.Status.EngineVersion = req.EngineVersion
	node.Status.Architecture = req.Architecture
	// Update, not patch: it carries the version that mayHold judged.
	if err := s.edge.Status().Update(ctx, node); err != nil {
		return fmt.Errorf("write key of node %s: %w", node.Name, err)
	}
	return nil
}
