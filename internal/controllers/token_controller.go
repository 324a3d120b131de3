package controllers

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
)

// tokenReconciler removes the records of join tokens that expired
// enroll.ExpiredTokenKept ago.
type tokenReconciler struct {
	client client.Client
	log    *slog.Logger
	clock  clock.PassiveClock
}

func (r *tokenReconciler) setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("tokens").
		For(&corev1.Secret{}).
		WithOptions(options(1)).
		Complete(quiet(r))
}

// Reconcile removes one record or comes back when it is time to.
func (r *tokenReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var secret corev1.Secret
	if err := r.client.Get(ctx, request.NamespacedName, &secret); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	record, err := enroll.ParseRecord(&secret)
	if err != nil {
		// Nothing that can be joined with, and not ours to judge.
		r.log.Warn("secret of the join token type cannot be read", "secret", secret.Name, "error", err)
		return reconcile.Result{}, nil
	}
	due := record.Expires.Add(enroll.ExpiredTokenKept)
	if wait := due.Sub(r.clock.Now()); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	// Only the version that was judged, so that one whose life was extended
	// meanwhile stays.
	err = r.client.Delete(ctx, &secret, client.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion})
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("remove expired join token %s: %w", record.ID, err)
	}
	r.log.Info("expired join token removed", "token", record.ID, "pool", record.Pool)
	return reconcile.Result{}, nil
}
