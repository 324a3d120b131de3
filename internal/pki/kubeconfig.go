package pki

import (
	"encoding/base64"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"
)

// KubeconfigOptions of Kubeconfig and WriteKubeconfig.
type KubeconfigOptions struct {
	Server string // https://127.0.0.1:6443
	CAPEM  []byte // of the server; in the file itself
	// CertFile and KeyFile of the client, read by the program at each use, so
	// that a renewed certificate needs no new kubeconfig.
	CertFile string
	KeyFile  string
	// CertPEM and KeyPEM put the client's certificate and key into the file
	// instead. The result is then a secret.
	CertPEM []byte
	KeyPEM  []byte
	// TLSServerName is checked instead of Server's host, when set.
	TLSServerName string
	// Cluster and User are the names of the entries; "edge" when empty.
	Cluster string
	User    string
}

// Kubeconfig returns a kubeconfig with one cluster, user and context.
func Kubeconfig(o KubeconfigOptions) ([]byte, error) {
	files := o.CertFile != "" && o.KeyFile != ""
	embedded := len(o.CertPEM) > 0 && len(o.KeyPEM) > 0
	if o.Server == "" || len(o.CAPEM) == 0 || files == embedded {
		return nil, fmt.Errorf("kubeconfig for %q: server, authority and either files or contents of the client's certificate are needed", o.Server)
	}
	clusterName, user := o.Cluster, o.User
	if clusterName == "" {
		clusterName = "edge"
	}
	if user == "" {
		user = "edge"
	}
	cluster := map[string]any{
		"server":                     o.Server,
		"certificate-authority-data": base64.StdEncoding.EncodeToString(o.CAPEM),
	}
	if o.TLSServerName != "" {
		cluster["tls-server-name"] = o.TLSServerName
	}
	auth := map[string]any{"client-certificate": o.CertFile, "client-key": o.KeyFile}
	if embedded {
		auth = map[string]any{
			"client-certificate-data": base64.StdEncoding.EncodeToString(o.CertPEM),
			"client-key-data":         base64.StdEncoding.EncodeToString(o.KeyPEM),
		}
	}
	return yaml.Marshal(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"clusters":        []any{map[string]any{"name": clusterName, "cluster": cluster}},
		"users":           []any{map[string]any{"name": user, "user": auth}},
		"contexts":        []any{map[string]any{"name": clusterName, "context": map[string]any{"cluster": clusterName, "user": user}}},
		"current-context": clusterName,
	})
}

// WriteKubeconfig writes the kubeconfig to path, 0600, in one step, and reports
// whether the file changed.
func WriteKubeconfig(path string, o KubeconfigOptions) (changed bool, err error) {
	data, err := Kubeconfig(o)
	if err != nil {
		return false, err
	}
	if have, err := os.ReadFile(path); err == nil && string(have) == string(data) {
		return false, nil
	}
	if err := writeFile(path, data, 0o600, quick); err != nil {
		return false, fmt.Errorf("write kubeconfig: %w", err)
	}
	return true, nil
}
