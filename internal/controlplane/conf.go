//go:build linux

package controlplane

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// egressConfig sends everything the apiserver dials towards the cluster (nodes,
// pods, services, webhooks) to the gateway. controlplane and etcd are not
// listed and so are dialled directly.
const egressConfig = `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      uds:
        udsName: ` + EgressSocket + `
`

// auditPolicy keeps who did what without bodies, the bodies of what decides
// rights and our own resources, and leaves out the heartbeats that would fill a
// disk.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources:
  - {group: "", resources: [events]}
  - {group: events.k8s.io, resources: [events]}
  - {group: coordination.k8s.io, resources: [leases]}
- level: None
  userGroups: ["system:nodes"]
  verbs: [patch, update]
  resources:
  - {group: "", resources: [nodes/status, pods/status]}
- level: None
  nonResourceURLs: ["/livez*", "/readyz*", "/healthz*", "/version"]
- level: Metadata
  resources:
  - {group: "", resources: [secrets, configmaps, serviceaccounts/token]}
  - {group: authentication.k8s.io, resources: [tokenreviews]}
- level: RequestResponse
  verbs: [create, update, patch, delete, deletecollection]
  resources:
  - {group: edgewright.dev}
  - {group: rbac.authorization.k8s.io}
  - {group: admissionregistration.k8s.io}
- level: Metadata
`

const encryptionTemplate = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox:
      keys:
      - name: key1
        secret: %s
  - identity: {}
`

// writeConf writes the children's configuration files. The encryption key is
// made once and never changed here: another would make every Secret unreadable.
func writeConf(l Layout) error {
	if err := os.MkdirAll(l.Join("conf"), 0o700); err != nil {
		return fmt.Errorf("make the configuration directory: %w", err)
	}
	for name, content := range map[string]string{
		"egress.yaml":       egressConfig,
		"audit-policy.yaml": auditPolicy,
	} {
		if err := writeFile(l.Conf(name), []byte(content)); err != nil {
			return err
		}
	}
	path := l.Conf("encryption.yaml")
	switch _, err := os.Stat(path); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look for the encryption key: %w", err)
	}
	key := make([]byte, 32) // secretbox: XSalsa20-Poly1305 takes 32 bytes
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("make the encryption key: %w", err)
	}
	return writeFile(path, fmt.Appendf(nil, encryptionTemplate, base64.StdEncoding.EncodeToString(key)))
}

// writeFile writes a file of mode 0600 so that a reader sees the old or the new
// content and never a part.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // CreateTemp makes it 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
