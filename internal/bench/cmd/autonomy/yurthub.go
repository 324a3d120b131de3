//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/hub/hubload"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

const (
	yurthubName = "OpenYurt yurthub 1.5.0"
	// yurthubGroup is an organisation in the certificates of yurthubs
	// (pkg/yurthub/certificate/token).
	yurthubGroup = "openyurt:yurthub"
)

// nodePools is the resource that a yurthub waits for before it serves anybody
// services or slices; of its schema no more than that it is one.
const nodePools = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"nodepools.apps.openyurt.io"},
"spec":{"group":"apps.openyurt.io","scope":"Cluster","names":{"kind":"NodePool","listKind":"NodePoolList","plural":"nodepools","singular":"nodepool"},
"versions":[{"name":"v1beta1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`

// letYurthubsRead gives yurthubs what the charts of OpenYurt give them, and what
// components without a credential of their own read through them beyond that.
func (c *cluster) letYurthubsRead(ctx context.Context) error {
	err := c.kube.Discovery().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
		SetHeader("Content-Type", "application/json").Body([]byte(nodePools)).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("make the custom resource nodepools: %w", err)
	}
	const name = "bench-yurthub"
	read := []string{"get", "list", "watch"}
	_, err = c.kube.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"configmaps", "namespaces", "services", "nodes"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"servicecidrs"}, Verbs: read},
		{APIGroups: []string{"apps.openyurt.io"}, Resources: []string{"nodepools"}, Verbs: read},
	}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make cluster role %s: %w", name, err)
	}
	_, err = c.kube.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: yurthubGroup}},
	}, metav1.CreateOptions{})
	return err
}

// yurthub is a running one.
type yurthub struct {
	cmd       *exec.Cmd
	log       string
	component string // URL for components on the node
	cache     string // directory
}

// startYurthub starts a node's yurthub as its chart does, with certificates as it
// would have got by bootstrapping, without its network interface. dir is empty.
func (w *world) startYurthub(ctx context.Context, c *cluster, node, dir string) (*yurthub, error) {
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "pki"), 0o700); err != nil {
		return nil, err
	}
	for file, r := range map[string]pki.Request{
		"yurthub-current.pem": {Client: true},
		"yurthub-server-current.pem": {
			Server: true, IPs: []net.IP{net.IPv4(10, 97, 0, 1), net.IPv4(169, 254, 2, 1), net.IPv4(127, 0, 0, 1)},
			DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		},
	} {
		r.Name, r.CommonName, r.Organizations = file+node, "system:node:"+node, []string{"system:nodes"}
		if r.Client {
			r.Organizations = append(r.Organizations, yurthubGroup)
		}
		cert, key, _, err := c.store.Ensure(c.server.CA, r)
		if err != nil {
			return nil, err
		}
		if err := concatenate(filepath.Join(root, "pki", file), cert, key); err != nil {
			return nil, err
		}
	}
	// With these certificates in place it bootstraps nothing, and of this file takes
	// the server and its authority.
	bootstrap := filepath.Join(root, "bootstrap-hub.conf")
	current := filepath.Join(root, "pki", "yurthub-current.pem")
	text, err := pki.Kubeconfig(pki.KubeconfigOptions{Server: c.server.URL, CAPEM: c.server.CA.PEM(), CertFile: current, KeyFile: current})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(bootstrap, text, 0o600); err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	y := &yurthub{
		log: filepath.Join(dir, "yurthub.log"), cache: filepath.Join(dir, "cache"),
		component: "http://127.0.0.1:" + strconv.Itoa(ports[0]),
	}
	y.cmd = exec.CommandContext(ctx, w.yurthub, "--v=2", "--server-addr="+c.server.URL, "--node-name="+node, "--bootstrap-file="+bootstrap,
		"--working-mode=edge", "--root-dir="+root, "--disk-cache-path="+y.cache+"/", "--enable-dummy-if=false",
		fmt.Sprint("--proxy-port=", ports[0]), fmt.Sprint("--proxy-secure-port=", ports[1]), fmt.Sprint("--serve-port=", ports[2]))
	// Its own informers are served as those of the component that has this name.
	y.cmd.Args[0] = "yurthub"
	y.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(y.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	y.cmd.Stdout, y.cmd.Stderr = log, log
	if err := y.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start yurthub: %w", err)
	}
	if err := y.ready(ctx, fmt.Sprintf("http://127.0.0.1:%d/v1/readyz", ports[2])); err != nil {
		return nil, errors.Join(err, y.stop())
	}
	return y, nil
}

// ready waits until yurthub says that it is.
func (y *yurthub) ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("yurthub was not ready within %s: %s", patience, y.lastWords())
		case <-ticker.C:
		}
	}
}

// lastWords is the end of what it logged.
func (y *yurthub) lastWords() string {
	text, err := os.ReadFile(y.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// config is what a component on the node is given: the local port, no identity.
func (y *yurthub) config(hubload.Component) (*rest.Config, error) {
	return &rest.Config{Host: y.component}, nil
}

func (y *yurthub) stop() error {
	if err := y.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = y.cmd.Wait() // by our signal
	return nil
}

// concatenate makes one private file of several.
func concatenate(to string, from ...string) error {
	var all bytes.Buffer
	for _, f := range from {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		all.Write(text)
	}
	return os.WriteFile(to, all.Bytes(), 0o600)
}

// freePorts finds n free ports on loopback, all different.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
