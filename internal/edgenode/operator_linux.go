//go:build linux

package edgenode

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/edgewright/terraform-provider-edge/internal/site"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

const (
	// kubeletClientsFile in conf/ holds the authorities whose clients the kubelet
	// takes: the cluster's, and localKubeletCA.
	kubeletClientsFile = "kubelet-clients.crt"
	// operatorFile in run/ is the kubeconfig of an operator on the node. It names
	// the files of a certificate and holds none; the address in it is of the node's
	// own loopback, which only root gets to.
	operatorFile = "kubectl.kubeconfig"
	// operatorCache in run/ is where that kubectl remembers what the API serves.
	operatorCache = "kubectl-cache"
)

// writeOperator writes what an operator on the node needs.
func (n *node) writeOperator(local *localPKI) error {
	cluster, err := os.ReadFile(n.pki(clusterCAFile))
	if err != nil {
		return err
	}
	clients := filepath.Join(n.dir, confDir, kubeletClientsFile)
	if err := writeFile(clients, append(cluster, local.kubeletCA.PEM()...), 0o644); err != nil {
		return err
	}
	path := filepath.Join(n.dir, runDir, operatorFile)
	if err := local.kubeconfig(path, localAdmin); err != nil {
		return err
	}
	for _, f := range []string{path, local.store.CertFile(localAdmin), local.store.KeyFile(localAdmin)} {
		if err := giveTo(f, n.spec.OwnerUID, n.spec.OwnerGID); err != nil {
			return err
		}
	}
	return nil
}

// kubeletRoots sign the kubelet's serving certificate: the cluster's CA, or, until
// it has, the node's own (see placeholder).
func (n *node) kubeletRoots(id *identity, local *localPKI) *x509.CertPool {
	roots := id.ca.Clone()
	roots.AddCert(local.ca.Certificate)
	return roots
}

// KubectlOptions of Kubectl. All but the streams are required.
type KubectlOptions struct {
	// Dir is the node dir.
	Dir string
	// Program is kubectl, and Args its arguments.
	Program string
	Args    []string
	// Env of kubectl, without KUBECONFIG.
	Env    []string
	In     io.Reader
	Out    io.Writer
	ErrOut io.Writer
}

// Kubectl runs kubectl for somebody at the device, against the node's own hub:
// with and without a link. It must be called by root, to get into the node's
// network, and runs kubectl as the owner of the node's files. An *exec.ExitError
// has been explained by kubectl.
func Kubectl(ctx context.Context, o KubectlOptions) error {
	spec, err := LoadSpec(o.Dir)
	if err != nil {
		return fmt.Errorf("node directory %s: %w", o.Dir, err)
	}
	state, err := supervise.FindDaemon(filepath.Join(o.Dir, runDir))
	if err != nil {
		return err
	}
	if !state.Alive() {
		return fmt.Errorf("node %s: no daemon runs, and nobody else answers kubectl here; start it with `edge node up --dir %s`", spec.Name, o.Dir)
	}
	kubeconfig := filepath.Join(o.Dir, runDir, operatorFile)
	if _, err := os.Stat(kubeconfig); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("node %s has not joined its cluster yet: `edge node status --dir %s` says where it is", spec.Name, o.Dir)
	} else if err != nil {
		return err
	}
	k := exec.CommandContext(ctx, o.Program, o.Args...)
	k.Env = append(o.Env, "KUBECONFIG="+kubeconfig, "KUBECACHEDIR="+filepath.Join(o.Dir, runDir, operatorCache),
		// The kubelet's protocol; kubectl would come to it by itself, one request later.
		"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false")
	k.Stdin, k.Stdout, k.Stderr = o.In, o.Out, o.ErrOut
	k.Cancel = func() error { return k.Process.Signal(os.Interrupt) }
	k.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(spec.OwnerUID), Gid: uint32(spec.OwnerGID)}} //nolint:gosec // ids of a user
	if err := site.In(site.NodeNamespace(spec.ClusterUID, spec.Name), k.Start); err != nil {
		return fmt.Errorf("run %s: %w", o.Program, err)
	}
	return k.Wait()
}
