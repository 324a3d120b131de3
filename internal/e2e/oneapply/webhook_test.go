//go:build linux

package oneapply

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// webhookManifest is agnhost's webhook server on tokyo-1 with a certificate made
// for it, and a configuration that sends it every ConfigMap of its namespace.
func webhookManifest(t *testing.T, ns string) string {
	t.Helper()
	dir := t.TempDir()
	store, err := pki.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := store.Authority("ca", "webhook test")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, _, err := store.Ensure(ca, pki.Request{Name: "server", CommonName: "webhook", Server: true, DNSNames: []string{"webhook." + ns + ".svc"}})
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(raw)
	}
	return strings.NewReplacer(
		"NS", ns, "IMAGE", agnhost,
		"CERT", read(cert), "KEY", read(key), "BUNDLE", read(filepath.Join(dir, "ca.crt")),
	).Replace(webhookTemplate)
}

const webhookTemplate = `apiVersion: v1
kind: Namespace
metadata: {name: NS, labels: {webhook: "yes"}}
---
apiVersion: v1
kind: Secret
metadata: {name: webhook, namespace: NS}
data: {tls.crt: CERT, tls.key: KEY}
---
apiVersion: v1
kind: Pod
metadata: {name: webhook, namespace: NS, labels: {app: webhook}}
spec:
  nodeSelector: {kubernetes.io/hostname: tokyo-1}
  containers:
  - name: webhook
    image: IMAGE
    args: [webhook, --tls-cert-file=/tls/tls.crt, --tls-private-key-file=/tls/tls.key, --port=8444]
    volumeMounts: [{name: tls, mountPath: /tls}]
    readinessProbe: {tcpSocket: {port: 8444}, periodSeconds: 1}
  volumes:
  - name: tls
    secret: {secretName: webhook}
---
apiVersion: v1
kind: Service
metadata: {name: webhook, namespace: NS}
spec:
  selector: {app: webhook}
  ports: [{port: 443, targetPort: 8444}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: NS}
webhooks:
- name: deny.edgewright.dev
  rules: [{apiGroups: [""], apiVersions: [v1], resources: [configmaps], operations: [CREATE]}]
  namespaceSelector: {matchLabels: {webhook: "yes"}}
  clientConfig:
    service: {namespace: NS, name: webhook, path: /always-deny}
    caBundle: BUNDLE
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
  timeoutSeconds: 5
`
