package enroll

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// certificateWait bounds the wait for both certificates. The device gives up
// after 60 s; the rest is for the steps before and the answer's way back.
const certificateWait = 45 * time.Second

// conflictTries bounds how often a step that lost against another writer is
// tried again: more than two writers of one record means an attack or a bug.
const conflictTries = 5

// Cluster is what a joined node is told about its cluster.
type Cluster struct {
	ID                  string
	Name                string
	CACertificate       string // PEM
	KubernetesVersion   string
	DNSDomain           string
	PodCIDRs            []string
	ServiceCIDRs        []string
	KubernetesServiceIP string
}

// ServiceConfig is what a Service needs.
type ServiceConfig struct {
	// RESTConfig is of the identity edge:gateway.
	RESTConfig *rest.Config
	Cluster    Cluster
	Logger     *slog.Logger
	// Clock is the real one when nil.
	Clock clock.PassiveClock
}

// Service is the cloud side of a join: an Enroller.
type Service struct {
	kube    kubernetes.Interface
	edge    client.Client
	tokens  *Store
	cluster Cluster
	log     *slog.Logger
	clock   clock.PassiveClock
	wait    time.Duration
}

var _ Enroller = (*Service)(nil)

// NewService returns a Service that talks to the apiserver of cfg.RESTConfig.
// It makes no request itself.
func NewService(cfg ServiceConfig) (*Service, error) {
	restConfig := rest.CopyConfig(cfg.RESTConfig)
	if restConfig.QPS == 0 {
		// Five requests a join; a whole site may join at once. The apiserver's
		// priority and fairness is what protects it.
		restConfig.QPS, restConfig.Burst = 200, 400
	}
	httpClient, err := rest.HTTPClientFor(restConfig)
	if err != nil {
		return nil, fmt.Errorf("enrolment: make HTTP client: %w", err)
	}
	kube, err := kubernetes.NewForConfigAndClient(restConfig, httpClient)
	if err != nil {
		return nil, fmt.Errorf("enrolment: make client: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("enrolment: register types: %w", err)
	}
	edge, err := client.New(restConfig, client.Options{HTTPClient: httpClient, Scheme: scheme, Mapper: edgeMapper()})
	if err != nil {
		return nil, fmt.Errorf("enrolment: make client of %s: %w", v1alpha1.GroupVersion, err)
	}
	return newService(kube, edge, cfg), nil
}

// edgeMapper knows the two kinds the service uses, so that the first join does
// not wait for discovery.
func edgeMapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(v1alpha1.GroupVersion.WithKind("EdgeNode"), meta.RESTScopeRoot)
	mapper.Add(v1alpha1.GroupVersion.WithKind("NodePool"), meta.RESTScopeRoot)
	return mapper
}

func newService(kube kubernetes.Interface, edge client.Client, cfg ServiceConfig) *Service {
	passive := cfg.Clock
	if passive == nil {
		passive = clock.RealClock{}
	}
	return &Service{
		kube:    kube,
		edge:    edge,
		tokens:  NewStore(StoreConfig{Client: kube, Clock: passive, Random: rand.Reader}),
		cluster: cfg.Cluster,
		log:     cfg.Logger,
		clock:   passive,
		wait:    certificateWait,
	}
}

// Enroll implements Enroller. It may be called again with the same request
// after any failure, also one that the device did not hear of.
func (s *Service) Enroll(ctx context.Context, req Request, remote netip.AddrPort) Response {
	log := s.log.With("remote", remote.String())
	resp, err := s.enroll(ctx, req, &log)
	if err != nil {
		answer := refusal(err)
		if answer.Code == CodeInternal {
			log.Error("join failed", "error", err)
		} else {
			log.Warn("join refused", "code", answer.Code, "reason", answer.Message)
		}
		return Response{Error: answer}
	}
	log.Info("node joined", "pool", resp.Pool)
	return *resp
}

// enroll is the whole join. log gains what is known to be true on the way, so
// that nothing a stranger typed is logged as a fact.
func (s *Service) enroll(ctx context.Context, req Request, log **slog.Logger) (*Response, error) {
	token, err := ParseToken(req.Token)
	if err != nil {
		return nil, refuse(CodeTokenInvalid, err.Error())
	}
	// The secret is checked before anything else of the request is looked at:
	// a stranger gets nothing but this one answer.
	record, err := s.tokens.find(ctx, token)
	if err != nil {
		return nil, err
	}
	*log = (*log).With("token", token.ID())
	if record.Expired(s.clock.Now()) {
		return nil, refuse(CodeTokenExpired, "the join token expired at "+record.Expires.UTC().Format(time.RFC3339)+"; ask for a new one")
	}
	key, err := checkRequest(req)
	if err != nil {
		return nil, err
	}
	*log = (*log).With("node", req.Name, "key", key)

	record, err = s.claim(ctx, token, req, key)
	if err != nil {
		return nil, err
	}
	certificates, err := s.certificates(ctx, req)
	if err != nil {
		return nil, err
	}
	return &Response{
		NodeCertificate:     certificates.node,
		HubCertificate:      certificates.hub,
		ClusterID:           s.cluster.ID,
		ClusterName:         s.cluster.Name,
		CACertificate:       s.cluster.CACertificate,
		KubernetesVersion:   s.cluster.KubernetesVersion,
		DNSDomain:           s.cluster.DNSDomain,
		PodCIDRs:            s.cluster.PodCIDRs,
		ServiceCIDRs:        s.cluster.ServiceCIDRs,
		KubernetesServiceIP: s.cluster.KubernetesServiceIP,
		Pool:                record.Pool,
	}, nil
}

// maxReported bounds the strings a device reports about itself.
const maxReported = 64

// checkRequest refuses a request that can never be right and returns the
// fingerprint of its key.
func checkRequest(req Request) (string, error) {
	if msgs := validation.IsDNS1123Label(req.Name); len(msgs) > 0 {
		return "", refuse(CodeRequestInvalid, "the node name is not valid: "+strings.Join(msgs, "; "))
	}
	if v1alpha1.ReservedNodeName(req.Name) {
		return "", refuse(CodeRequestInvalid, "the node name belongs to the cluster's own servers")
	}
	if len(req.EngineVersion) > maxReported || len(req.Architecture) > maxReported {
		return "", refuse(CodeRequestInvalid, "the reported version or architecture is too long")
	}
	node, err := checkedCSR(req.NodeCSR, Subject{CommonName: v1alpha1.NodeUserPrefix + req.Name, Organization: NodesGroup})
	if err != nil {
		return "", refuse(CodeRequestInvalid, "the node's certificate request: "+err.Error())
	}
	hub, err := checkedCSR(req.HubCSR, Subject{CommonName: v1alpha1.HubUserPrefix + req.Name, Organization: v1alpha1.HubGroup})
	if err != nil {
		return "", refuse(CodeRequestInvalid, "the hub's certificate request: "+err.Error())
	}
	key, err := Fingerprint(node.PublicKey)
	if err != nil {
		return "", refuse(CodeRequestInvalid, err.Error())
	}
	if hubKey, err := Fingerprint(hub.PublicKey); err != nil || hubKey != key {
		return "", refuse(CodeRequestInvalid, "the two certificate requests are not of one key")
	}
	return key, nil
}

func checkedCSR(text string, want Subject) (*x509.CertificateRequest, error) {
	req, err := ParseCSR([]byte(text))
	if err != nil {
		return nil, err
	}
	if err := CheckCSR(req, want); err != nil {
		return nil, err
	}
	return req, nil
}
