package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	appsv1 "k8s.io/api/apps/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// fieldManager owns what the controllers apply.
const fieldManager = client.FieldOwner("edge-controllers")

// How much the controllers do at once. Joining is what somebody waits for, a
// whole site at a time; the rest keeps up with a few.
const (
	joinConcurrency = 8
	unitConcurrency = 4
	poolConcurrency = 2
)

// How long a failed reconcile waits: short at first, since most failures are
// conflicts; at most half a minute, since somebody waits for what is stuck.
const (
	retryFirst = 20 * time.Millisecond
	retryMax   = 30 * time.Second
)

// shutdownBound is how long Run waits for reconciles in progress. All of them
// can be cut short and resumed.
const shutdownBound = 5 * time.Second

// Config is what Run needs.
type Config struct {
	// RESTConfig is of the identity edge:controllers.
	RESTConfig *rest.Config
	// Sessions is the gateway's view of who is connected.
	Sessions Sessions
	// Reports is what nodes say of themselves; nil: they are not heard.
	Reports Reports
	// Kick ends the session of a node, if there is one, and tells it why. It
	// must not block for long; it may be called again for a node without one.
	Kick func(node, reason string)
	// Authority signs what may be dialled through each node. nil: nodes get no
	// policy, and agents then allow nothing but their kubelets.
	Authority *pki.Authority
	Logger    *slog.Logger
	// Clock is the real one when nil.
	Clock clock.PassiveClock
}

// Run runs all controllers until ctx ends; it then returns nil. The custom
// resources must be installed (Install). One Run per cluster: there is no
// leader election here, whoever calls sees to that.
func Run(ctx context.Context, cfg Config) error {
	if cfg.RESTConfig == nil || cfg.Sessions == nil || cfg.Kick == nil || cfg.Logger == nil {
		return errors.New("run controllers: RESTConfig, Sessions, Kick and Logger must be set")
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Reports == nil {
		cfg.Reports = NewReportBoard()
	}
	// The library has one logger for code that was given none.
	logger := logr.FromSlogHandler(cfg.Logger.Handler())
	ctrllog.SetLogger(logger)

	if err := awaitRights(ctx, cfg.RESTConfig); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("run controllers: %w", err)
	}
	manager, err := newManager(ctx, cfg, logger)
	if err != nil {
		return fmt.Errorf("run controllers: %w", err)
	}
	if err := manager.Start(ctx); err != nil {
		return fmt.Errorf("run controllers: %w", err)
	}
	return nil
}

// awaitRights waits until the apiserver lets the identity list what the
// controllers watch. Right after an install it has accepted the roles but may
// not go by them yet; a watch that is refused would be tried again only after
// most of a second.
func awaitRights(ctx context.Context, restConfig *rest.Config) error {
	dynamicClient, err := dynamic.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	resource := v1alpha1.GroupVersion.WithResource("edgenodes")
	err = untilAccepted(ctx, func() error {
		_, err := dynamicClient.Resource(resource).List(ctx, metav1.ListOptions{Limit: 1})
		return err
	})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	return nil
}

// staticMapper knows where the kinds of the controllers are served, so that
// they start without discovery.
func staticMapper(*rest.Config, *http.Client) (meta.RESTMapper, error) {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []struct {
		gvk   schema.GroupVersionKind
		scope meta.RESTScope
	}{
		{corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot},
		{corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace},
		{corev1.SchemeGroupVersion.WithKind("Secret"), meta.RESTScopeNamespace},
		{corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace},
		{corev1.SchemeGroupVersion.WithKind("Service"), meta.RESTScopeNamespace},
		{corev1.SchemeGroupVersion.WithKind("Event"), meta.RESTScopeNamespace},
		{appsv1.SchemeGroupVersion.WithKind("Deployment"), meta.RESTScopeNamespace},
		{appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), meta.RESTScopeNamespace},
		{coordinationv1.SchemeGroupVersion.WithKind("Lease"), meta.RESTScopeNamespace},
		{rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"), meta.RESTScopeRoot},
		{certificatesv1.SchemeGroupVersion.WithKind("CertificateSigningRequest"), meta.RESTScopeRoot},
		{v1alpha1.GroupVersion.WithKind("EdgeNode"), meta.RESTScopeRoot},
		{v1alpha1.GroupVersion.WithKind("NodePool"), meta.RESTScopeRoot},
		{v1alpha1.GroupVersion.WithKind("UnitDeployment"), meta.RESTScopeNamespace},
	} {
		mapper.Add(kind.gvk, kind.scope)
	}
	return mapper, nil
}

func newManager(ctx context.Context, cfg Config, logger logr.Logger) (ctrl.Manager, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	restConfig := rest.CopyConfig(cfg.RESTConfig)
	if restConfig.QPS == 0 {
		// The controllers' work comes in bursts (a site joins, a unit
		// deployment changes) and the apiserver has priority and fairness.
		restConfig.QPS, restConfig.Burst = 200, 400
	}
	byObject, err := cacheSelection()
	if err != nil {
		return nil, err
	}
	manager, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme:                  scheme,
		MapperProvider:          staticMapper,
		Logger:                  logger,
		Metrics:                 metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress:  "0",
		LeaderElection:          false,
		GracefulShutdownTimeout: ptr.To(shutdownBound),
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         byObject,
		},
		// Two clusters' controllers may share a process, in tests above all.
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	})
	if err != nil {
		return nil, fmt.Errorf("make manager: %w", err)
	}
	if err := addIndexes(ctx, manager); err != nil {
		return nil, err
	}
	pods, err := newPodCache(manager)
	if err != nil {
		return nil, err
	}
	kube, live := manager.GetClient(), manager.GetAPIReader()
	reconcilers := []interface{ setup(ctrl.Manager) error }{
		&certificateReconciler{client: kube, live: live, log: cfg.Logger},
		&nodeReconciler{
			client: kube, live: live, log: cfg.Logger, clock: cfg.Clock,
			sessions: cfg.Sessions, reports: cfg.Reports, kick: cfg.Kick, started: cfg.Clock.Now(),
			marks: rate.NewLimiter(cutMarksRate, cutMarksBurst), keys: map[string]string{}, met: map[string]struct{}{},
		},
		&poolReconciler{client: kube, log: cfg.Logger, clock: cfg.Clock},
		&unitReconciler{client: kube, live: live, log: cfg.Logger, clock: cfg.Clock, applied: newAppliedCache()},
		&tokenReconciler{client: kube, log: cfg.Logger, clock: cfg.Clock},
		&placesReconciler{client: kube, log: cfg.Logger, clock: cfg.Clock},
		&keptReconciler{client: kube, live: live, log: cfg.Logger, clock: cfg.Clock, sessions: cfg.Sessions},
		&tolerationReconciler{client: kube, live: live, pods: pods, log: cfg.Logger},
	}
	if cfg.Authority != nil {
		reconcilers = append(reconcilers, &policyReconciler{client: kube, authority: cfg.Authority, clock: cfg.Clock})
	}
	for _, reconciler := range reconcilers {
		if err := reconciler.setup(manager); err != nil {
			return nil, fmt.Errorf("set up %T: %w", reconciler, err)
		}
	}
	return manager, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, rbacv1.AddToScheme, certificatesv1.AddToScheme,
		coordinationv1.AddToScheme, policyv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register types: %w", err)
		}
	}
	return scheme, nil
}

// cacheSelection keeps out of the caches what is not ours: a cluster may hold
// tens of thousands of pods and services that no controller here looks at.
func cacheSelection() (map[client.Object]cache.ByObject, error) {
	ofUnits, err := withLabel(v1alpha1.UnitDeploymentLabel)
	if err != nil {
		return nil, err
	}
	ofNodes, err := withLabel(enroll.NodeLabel)
	if err != nil {
		return nil, err
	}
	return map[client.Object]cache.ByObject{
		&appsv1.Deployment{}:         {Label: ofUnits},
		&appsv1.ReplicaSet{}:         {Label: ofUnits},
		&corev1.Pod{}:                {Label: ofUnits},
		&corev1.Service{}:            {Label: ofUnits},
		&rbacv1.ClusterRoleBinding{}: {Label: ofNodes},
		&corev1.Node{}:               {Transform: stripNode},
		&corev1.Secret{}: {
			Namespaces: map[string]cache.Config{v1alpha1.SystemNamespace: {}},
			Field:      fields.OneTermEqualSelector("type", string(enroll.TokenSecretType)),
		},
	}, nil
}

func withLabel(key string) (labels.Selector, error) {
	requirement, err := labels.NewRequirement(key, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("selector for label %s: %w", key, err)
	}
	return labels.NewSelector().Add(*requirement), nil
}

// stripNode keeps of a Node what the controllers read. The image list alone is
// most of a Node's size.
func stripNode(in any) (any, error) {
	if node, ok := in.(*corev1.Node); ok {
		node.ManagedFields = nil
		node.Status.Images = nil
		node.Status.VolumesInUse = nil
		node.Status.VolumesAttached = nil
	}
	return in, nil
}

// The indexes of the cache.
const (
	indexNodePool = "spec.pool"       // EdgeNode by its pool
	indexUnitPool = "spec.pools.name" // UnitDeployment by the pools it names
)

func addIndexes(ctx context.Context, manager ctrl.Manager) error {
	indexer := manager.GetFieldIndexer()
	err := indexer.IndexField(ctx, &v1alpha1.EdgeNode{}, indexNodePool, func(object client.Object) []string {
		return []string{object.(*v1alpha1.EdgeNode).Spec.Pool}
	})
	if err != nil {
		return fmt.Errorf("index nodes by pool: %w", err)
	}
	err = indexer.IndexField(ctx, &v1alpha1.UnitDeployment{}, indexUnitPool, func(object client.Object) []string {
		var names []string
		for _, pool := range object.(*v1alpha1.UnitDeployment).Spec.Pools {
			names = append(names, pool.Name)
		}
		return names
	})
	if err != nil {
		return fmt.Errorf("index unit deployments by pool: %w", err)
	}
	return nil
}

// options of a controller that does n things at once.
func options(n int) controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: n,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](retryFirst, retryMax),
	}
}

// quiet makes conflicts no errors: somebody else wrote at the same time, which
// is nothing to log, and looking once more is the whole cure.
func quiet(r reconcile.Reconciler) reconcile.Reconciler {
	return reconcile.Func(func(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
		result, err := r.Reconcile(ctx, request)
		if apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: retryFirst}, nil
		}
		return result, err
	})
}
