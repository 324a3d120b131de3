package controllers

import (
	"context"
	"fmt"
	"log/slog"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// certificateReconciler carries out Decide.
type certificateReconciler struct {
	client client.Client
	// live reads past the cache: the gateway writes a node's key a moment before
	// it asks for the certificate, and a cache that has not seen it yet would
	// deny a good request for ever.
	live client.Reader
	log  *slog.Logger
}

func (r *certificateReconciler) setup(mgr ctrl.Manager) error {
	undecided := predicate.NewPredicateFuncs(func(object client.Object) bool {
		csr, ok := object.(*certificatesv1.CertificateSigningRequest)
		return ok && !decided(csr)
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("certificates").
		For(&certificatesv1.CertificateSigningRequest{}).
		WithEventFilter(undecided).
		WithOptions(options(joinConcurrency)).
		Complete(quiet(r))
}

// Reconcile decides one request.
func (r *certificateReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var csr certificatesv1.CertificateSigningRequest
	if err := r.client.Get(ctx, request.NamespacedName, &csr); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if decided(&csr) {
		return reconcile.Result{}, nil
	}
	name, ours := claimedNode(&csr)
	if !ours {
		return reconcile.Result{}, nil
	}
	node, err := r.node(ctx, name)
	if err != nil {
		return reconcile.Result{}, err
	}
	decision := Decide(&csr, node)
	condition := certificatesv1.CertificateSigningRequestCondition{
		Status:  corev1.ConditionTrue,
		Reason:  decision.Reason,
		Message: decision.Message,
	}
	switch decision.Verdict {
	case Approve:
		condition.Type = certificatesv1.CertificateApproved
	case Deny:
		condition.Type = certificatesv1.CertificateDenied
	default:
		return reconcile.Result{}, nil
	}
	csr.Status.Conditions = append(csr.Status.Conditions, condition)
	if err := r.client.SubResource("approval").Update(ctx, &csr); err != nil {
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			// Someone else decided, or it is gone; the next event tells.
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("write decision on certificate request %s: %w", csr.Name, err)
	}
	log := r.log.With("request", csr.Name, "node", name, "signer", csr.Spec.SignerName, "requester", csr.Spec.Username)
	if decision.Verdict == Deny {
		log.Warn("certificate request denied", "reason", decision.Reason, "message", decision.Message)
	} else {
		log.Info("certificate request approved", "reason", decision.Reason)
	}
	return reconcile.Result{}, nil
}

// node reads a node's enrolment record, nil if there is none.
func (r *certificateReconciler) node(ctx context.Context, name string) (*v1alpha1.EdgeNode, error) {
	if name == "" || !validObjectName(name) {
		return nil, nil
	}
	var node v1alpha1.EdgeNode
	if err := r.live.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("read node %s: %w", name, err)
	}
	return &node, nil
}

// decided says whether nothing is left to decide.
func decided(csr *certificatesv1.CertificateSigningRequest) bool {
	if len(csr.Status.Certificate) > 0 {
		return true
	}
	for _, condition := range csr.Status.Conditions {
		switch condition.Type {
		case certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			return true
		}
	}
	return false
}
