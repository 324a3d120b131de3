//go:build linux

package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// Names of the children.
const (
	etcd              = "etcd"
	apiserver         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
)

// startOrder is what depends on what; they are stopped in its reverse.
var startOrder = []string{etcd, apiserver, controllerManager, scheduler}

// Times that a child may take.
const (
	// readyTimeout: a start takes seconds; on a machine that is busy building
	// components it has taken half a minute.
	readyTimeout = 3 * time.Minute
	// apiserverStopTimeout is longer than its own grace period for watches.
	apiserverStopTimeout = 20 * time.Second
	stopTimeout          = 10 * time.Second
)

// children are the programs to keep running. etcd must serve before the
// apiserver starts: an apiserver that meets no etcd looks again only after a
// second. The others retry by themselves and so start at once.
func children(s *Spec, l Layout, c *credentials) ([]supervise.Spec, error) {
	etcdTLS, probe := probeTLS(c.roots, c.etcdClient), probeTLS(c.roots, c.admin)
	env := supervise.MinimalEnv(os.LookupEnv)
	specs := []supervise.Spec{
		{
			Name: etcd, Args: etcdArgs(s, l), StopTimeout: stopTimeout,
			Ready: supervise.HTTPProbe("https://"+loopbackPort(s.Ports.EtcdClient)+"/readyz", etcdTLS),
		},
		{
			Name: apiserver, Args: apiserverArgs(s, l), After: []string{etcd}, StopTimeout: apiserverStopTimeout,
			Ready: supervise.HTTPProbe(s.Endpoint()+"/readyz", probe),
		},
		{
			Name: controllerManager, Args: controllerManagerArgs(s, l), StopTimeout: stopTimeout,
			Ready: supervise.HTTPProbe("https://"+loopbackPort(s.Ports.ControllerManager)+"/healthz", probe),
		},
		{
			Name: scheduler, Args: schedulerArgs(s, l), StopTimeout: stopTimeout,
			Ready: supervise.HTTPProbe("https://"+loopbackPort(s.Ports.Scheduler)+"/healthz", probe),
		},
	}
	for i := range specs {
		c := &specs[i]
		c.Path = s.Programs[c.Name]
		if c.Path == "" {
			return nil, fmt.Errorf("the control plane's spec names no %s program", c.Name)
		}
		c.Env, c.Dir, c.ReadyTimeout = env, l.Dir, readyTimeout
	}
	return specs, nil
}

// probeTLS authenticates the readiness probes: nothing answers anonymously.
func probeTLS(pool *x509.CertPool, cert tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
}
