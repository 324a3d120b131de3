package engine

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

func TestExecKubeconfigIsValidAndHoldsNoSecret(t *testing.T) {
	c := &Cluster{ID: "local/c-1f2e3d4c", Spec: ClusterSpec{Name: "c"}, Endpoint: "https://127.0.0.1:20001", CACertificate: "-----BEGIN CERTIFICATE-----\n"}
	text := execKubeconfig(c, "/home/u/.edge/bin/edge")
	cfg, err := clientcmd.Load([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := clientcmd.Validate(*cfg); err != nil {
		t.Error(err)
	}
	user := cfg.AuthInfos["c"]
	if user == nil || user.Exec == nil || user.Exec.Command != "/home/u/.edge/bin/edge" || strings.Join(user.Exec.Args, " ") != "credentials local/c-1f2e3d4c" {
		t.Fatalf("user: %+v", user)
	}
	if len(user.ClientKeyData) > 0 || user.Token != "" || user.Password != "" {
		t.Error("it holds a secret")
	}
	if got := cfg.Clusters[cfg.Contexts[cfg.CurrentContext].Cluster]; got.Server != c.Endpoint || string(got.CertificateAuthorityData) != c.CACertificate {
		t.Errorf("cluster: %+v", got)
	}
}

func TestExecKubeconfigIsNotInjected(t *testing.T) {
	evil := "c\n- name: evil\n  user: {token: x}"
	c := &Cluster{ID: "local/c-1f2e3d4c@--seed: {a", Spec: ClusterSpec{Name: evil}, Endpoint: "https://127.0.0.1:1\nusers: []", CACertificate: evil}
	cfg, err := clientcmd.Load([]byte(execKubeconfig(c, `/home/a "b": #c/bin/edge`, "--state-dir", `/home/a "b": #c`)))
	if err != nil {
		t.Fatal(err)
	}
	user := cfg.AuthInfos["c"]
	if len(cfg.AuthInfos) != 1 || len(cfg.Clusters) != 1 || user == nil || user.Token != "" || cfg.Clusters["c"].Server != c.Endpoint {
		t.Fatalf("%+v", cfg)
	}
	if want := []string{"--state-dir", `/home/a "b": #c`, "credentials", "local/c-1f2e3d4c"}; user.Exec.Command != `/home/a "b": #c/bin/edge` || !slices.Equal(user.Exec.Args, want) {
		t.Errorf("%s %q", user.Exec.Command, user.Exec.Args)
	}
	for _, id := range []string{"", "--state-dir=/x", "local/c-1f2e3d4c\n"} {
		c.ID = id
		if text := execKubeconfig(c, "edge"); text != "" {
			t.Errorf("id %q: %s", id, text)
		}
	}
}

func TestClusterCredentials(t *testing.T) {
	e := newTestEngineAt(t, t.TempDir())
	id := clusterID{"local", "c", "1f2e3d4c", ""}
	if _, err := e.ClusterCredentials(t.Context(), id.String(), time.Hour); ClassOf(err) != Unreachable {
		t.Errorf("without keys: %v", err)
	}
	r := &record{ID: id.String(), UID: id.UID, Spec: ClusterSpec{Name: "c", API: APISpec{Port: 20001}}, Phase: phaseReady}
	if err := e.state.save(r); err != nil {
		t.Fatal(err)
	}
	store, err := pki.Open(e.dirOf(r)+"/pki", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Authority("ca", "c"); err != nil {
		t.Fatal(err)
	}
	for _, ttl := range []time.Duration{0, time.Minute, 25 * time.Hour} {
		if _, err := e.ClusterCredentials(t.Context(), id.String(), ttl); ClassOf(err) != Invalid {
			t.Errorf("ttl %s: %v", ttl, err)
		}
	}
	creds, err := e.ClusterCredentials(t.Context(), id.String()+"@seed", 10*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseCertificatesPEM([]byte(creds.ClientCertificate))
	if err != nil {
		t.Fatal(err)
	}
	cert := certs[0]
	if left := time.Until(cert.NotAfter); left > 11*time.Minute || left < 9*time.Minute {
		t.Errorf("it is valid for %s more", left)
	}
	if len(cert.Subject.Organization) != 1 || cert.Subject.Organization[0] == "system:masters" || !strings.HasPrefix(cert.Subject.CommonName, "edge:operator:") {
		t.Errorf("subject %s", cert.Subject)
	}
	if creds.Host != "https://127.0.0.1:20001" || !creds.ExpiresAt.Equal(cert.NotAfter) {
		t.Errorf("%s until %s", creds.Host, creds.ExpiresAt)
	}
}

func newTestEngineAt(t *testing.T, dir string) *Engine {
	t.Helper()
	e, err := New(Options{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return e
}
