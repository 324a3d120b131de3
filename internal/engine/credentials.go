package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"time"

	clientcmdv1 "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// Credentials open a cluster for a bounded time. ClientKey is secret.
type Credentials struct {
	Host              string // https://host:port
	CACertificate     string // PEM
	ClientCertificate string // PEM
	ClientKey         string // PEM, secret
	ExpiresAt         time.Time
}

// Bounds of an operator's certificate: kubectl asks anew when it ends, so it
// need not live long, and a stolen one must not.
const (
	DefaultCredentialTTL = time.Hour
	MinCredentialTTL     = 5 * time.Minute
	MaxCredentialTTL     = 24 * time.Hour
)

// ClusterCredentials mints a client certificate that names the operator.
func (e *Engine) ClusterCredentials(ctx context.Context, id string, ttl time.Duration) (*Credentials, error) {
	const op = "mint credentials for"
	parsed, err := parseClusterID(id)
	if err != nil {
		return nil, &Error{Class: Invalid, Op: op, Object: id, Field: "cluster_id", Err: err}
	}
	if ttl < MinCredentialTTL || ttl > MaxCredentialTTL {
		return nil, &Error{Class: Invalid, Op: op, Object: id, Field: "ttl", Err: fmt.Errorf("%s: from %s to %s", ttl, MinCredentialTTL, MaxCredentialTTL)}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := e.state.load(parsed)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{Class: Unreachable, Op: op, Object: id,
			Err:  fmt.Errorf("the state directory %s does not hold this cluster's keys", e.opts.StateDir),
			Next: "Run this where the cluster was made, or set EDGE_STATE_DIR to that directory"}
	}
	if err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: id, Err: err}
	}
	creds, err := e.mint(r, operatorName(), ttl)
	if err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: id, Err: err, Next: logsHint(id)}
	}
	return creds, nil
}

func operatorName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid-%d", os.Getuid())
}

// mint signs with the CA in the cluster's directory. The key exists in this
// process only.
func (e *Engine) mint(r *record, operator string, ttl time.Duration) (*Credentials, error) {
	dir := filepath.Join(e.dirOf(r), "pki")
	store, err := pki.Open(dir, nil)
	if err != nil {
		return nil, err
	}
	ca, err := store.LoadAuthority("ca")
	if err != nil {
		return nil, fmt.Errorf("the cluster's own certificate authority: %w", err)
	}
	key, err := pki.GenerateKey()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(pki.Request{
		Name: "operator", CommonName: "edge:operator:" + operator, Organizations: []string{v1alpha1.OperatorsGroup},
		Client: true, Lifetime: ttl,
	}, &key.PublicKey, e.opts.Now())
	if err != nil {
		return nil, fmt.Errorf("sign the operator's certificate: %w", err)
	}
	keyPEM, err := pki.EncodeKeyPEM(key)
	if err != nil {
		return nil, err
	}
	return &Credentials{
		Host:              fmt.Sprintf("https://127.0.0.1:%d", r.Spec.API.Port),
		CACertificate:     string(ca.PEM()),
		ClientCertificate: string(pki.EncodeCertificatesPEM(cert)),
		ClientKey:         string(keyPEM),
		ExpiresAt:         cert.NotAfter,
	}, nil
}

// installHint is what kubectl prints when it does not find the edge program.
const installHint = `The edge program is not on the PATH. It is linked as bin/edge below the
state directory (~/.edge unless EDGE_STATE_DIR says otherwise):
export PATH="$HOME/.edge/bin:$PATH"
`

// execKubeconfig is a kubeconfig without a secret: kubectl runs
// `<edge> <flags> credentials <id>` when it needs a certificate. Names come from
// the parsed id and the text from a YAML encoder, because a cluster elsewhere
// says its id and name itself: what it says must become neither another entry nor
// another argument. It is empty where the id is none.
func execKubeconfig(c *Cluster, edge string, flags ...string) string {
	id, err := parseClusterID(c.ID)
	if err != nil {
		return ""
	}
	text, err := yaml.Marshal(clientcmdv1.Config{
		APIVersion: "v1",
		Kind:       "Config",
		Clusters: []clientcmdv1.NamedCluster{{Name: id.Name, Cluster: clientcmdv1.Cluster{
			Server: c.Endpoint, CertificateAuthorityData: []byte(c.CACertificate),
		}}},
		Contexts:       []clientcmdv1.NamedContext{{Name: id.Name, Context: clientcmdv1.Context{Cluster: id.Name, AuthInfo: id.Name}}},
		CurrentContext: id.Name,
		AuthInfos: []clientcmdv1.NamedAuthInfo{{Name: id.Name, AuthInfo: clientcmdv1.AuthInfo{Exec: &clientcmdv1.ExecConfig{
			APIVersion:      "client.authentication.k8s.io/v1",
			Command:         edge,
			Args:            append(slices.Clone(flags), "credentials", id.String()),
			InteractiveMode: clientcmdv1.NeverExecInteractiveMode,
			InstallHint:     installHint,
		}}}},
	})
	if err != nil {
		return "" // strings and byte slices always encode
	}
	return string(text)
}
