//go:build linux

package controllers_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

func TestJoin(t *testing.T) {
	w := real(t)
	w.pool(t, "join", v1alpha1.NodePoolSpec{})
	d := newDevice(t)
	token := w.mint(t, enroll.MintOptions{Pool: "join"})
	started := time.Now()
	response := d.mustJoin(t, w, token, "join-1")
	t.Logf("joined in %s", time.Since(started))

	if response.Pool != "join" || response.ClusterID != "local/test-00000001" {
		t.Errorf("answer says pool %q, cluster %q", response.Pool, response.ClusterID)
	}
	for text, subject := range map[string]string{
		response.NodeCertificate: "CN=system:node:join-1,O=system:nodes",
		response.HubCertificate:  "CN=edge:hub:join-1,O=edge:hubs",
	} {
		block, _ := pem.Decode([]byte(text))
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if certificate.Subject.String() != subject {
			t.Errorf("certificate is for %s, want %s", certificate.Subject, subject)
		}
		_, err = certificate.Verify(x509.VerifyOptions{Roots: w.server.CA.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			t.Error(err)
		}
	}
	node := w.phase(t, "join-1", v1alpha1.NodeEnrolled)
	if node.Status.Key != d.fingerprint(t) || !slices.Contains(node.Finalizers, v1alpha1.NodeFinalizer) {
		t.Errorf("record has key %q and finalizers %v", node.Status.Key, node.Finalizers)
	}

	// An interrupted join is finished with the same token and key, and nobody
	// else uses the token.
	d.mustJoin(t, w, token, "join-1")
	wantRefusal(t, newDevice(t).join(t, w, token, "join-1"), enroll.CodeTokenUsed)
	wantRefusal(t, d.join(t, w, token, "join-other"), enroll.CodeNameConflict)
}

func TestHubRights(t *testing.T) {
	w := real(t)
	d, _, response := w.joined(t, "hubrights", "hubrights-1")
	hub := clientset(t, d.identity(t, w, response.HubCertificate))
	eventually(t, "hub may list services", func() error {
		_, err := hub.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		return err
	})
	for what, err := range map[string]error{
		"endpointslices": discard(hub.DiscoveryV1().EndpointSlices("").List(t.Context(), metav1.ListOptions{})),
		"namespaces":     discard(hub.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})),
		"servicecidrs":   discard(hub.NetworkingV1().ServiceCIDRs().List(t.Context(), metav1.ListOptions{})),
		"nodepools":      hub.Discovery().RESTClient().Get().AbsPath("/apis/edgewright.dev/v1alpha1/nodepools").Do(t.Context()).Error(),
	} {
		if err != nil {
			t.Errorf("hub may not list %s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"secrets":   discard(hub.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{})),
		"pods":      discard(hub.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})),
		"nodes":     discard(hub.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})),
		"edgenodes": hub.Discovery().RESTClient().Get().AbsPath("/apis/edgewright.dev/v1alpha1/edgenodes").Do(t.Context()).Error(),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("hub may list %s: %v", what, err)
		}
	}
	// A binding that is changed or removed by hand is put back.
	if err := w.kube.RbacV1().ClusterRoleBindings().Delete(t.Context(), "edge:hub:hubrights-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "binding is back", func() error {
		return discard(w.kube.RbacV1().ClusterRoleBindings().Get(t.Context(), "edge:hub:hubrights-1", metav1.GetOptions{}))
	})
}

func discard[T any](_ T, err error) error { return err }

func TestJoinRefused(t *testing.T) {
	w := real(t)
	w.pool(t, "refused", v1alpha1.NodePoolSpec{})
	w.pool(t, "refused-other", v1alpha1.NodePoolSpec{})
	w.create(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "refused-declared"}, Spec: v1alpha1.EdgeNodeSpec{Pool: "refused-other"}})
	token := w.mint(t, enroll.MintOptions{Pool: "refused"})
	text := token.Reveal()

	long := clocktesting.NewFakePassiveClock(time.Now().Add(-2 * time.Hour))
	expired, err := w.tokenStore(long).Mint(t.Context(), enroll.MintOptions{Pool: "refused"})
	if err != nil {
		t.Fatal(err)
	}
	other := w.mint(t, enroll.MintOptions{Pool: "refused"})
	revoked := w.mint(t, enroll.MintOptions{Pool: "refused"})
	if err := w.tokens.Revoke(t.Context(), revoked.ID()); err != nil {
		t.Fatal(err)
	}

	flip := func(s string, at int) string {
		c := byte('a')
		if s[at] == 'a' {
			c = 'b'
		}
		return s[:at] + string(c) + s[at+1:]
	}
	d := newDevice(t)
	for _, c := range []struct {
		what string
		code enroll.Code
		edit func(*enroll.Request)
	}{
		{"empty token", enroll.CodeTokenInvalid, func(r *enroll.Request) { r.Token = "" }},
		{"tampered secret", enroll.CodeTokenInvalid, func(r *enroll.Request) { r.Token = flip(text, 20) }},
		{"tampered pin", enroll.CodeTokenInvalid, func(r *enroll.Request) { r.Token = flip(text, 55) }},
		{"secret of another token", enroll.CodeTokenInvalid, func(r *enroll.Request) { r.Token = swapSecret(t, text, other.Reveal()) }},
		{"revoked", enroll.CodeTokenInvalid, func(r *enroll.Request) { r.Token = revoked.Reveal() }},
		{"expired", enroll.CodeTokenExpired, func(r *enroll.Request) { r.Token = expired.Reveal() }},
		{"unknown pool", enroll.CodePoolUnknown, func(r *enroll.Request) {
			r.Token = w.mint(t, enroll.MintOptions{Pool: "no-such-pool"}).Reveal()
		}},
		{"name bound by the operator", enroll.CodeNameConflict, func(r *enroll.Request) {
			r.Token = w.mint(t, enroll.MintOptions{Pool: "refused", Node: "refused-bound"}).Reveal()
		}},
		{"declared in another pool", enroll.CodeNameConflict, func(r *enroll.Request) {
			*r = d.request(t, token, "refused-declared")
		}},
		{"name that is no label", enroll.CodeRequestInvalid, func(r *enroll.Request) { r.Name = "a.b" }},
		{"request for another name", enroll.CodeRequestInvalid, func(r *enroll.Request) { r.NodeCSR = d.request(t, token, "refused-2").NodeCSR }},
		{"requests of two keys", enroll.CodeRequestInvalid, func(r *enroll.Request) { r.HubCSR = newDevice(t).request(t, token, "refused-1").HubCSR }},
		{"requests swapped", enroll.CodeRequestInvalid, func(r *enroll.Request) { r.NodeCSR, r.HubCSR = r.HubCSR, r.NodeCSR }},
	} {
		t.Run(c.what, func(t *testing.T) {
			request := d.request(t, token, "refused-1")
			c.edit(&request)
			response := w.service.Enroll(t.Context(), request, remote)
			wantRefusal(t, response, c.code)
			answer, err := json.Marshal(response)
			if err != nil {
				t.Fatal(err)
			}
			if request.Token != "" && strings.Contains(string(answer), request.Token) {
				t.Error("the answer echoes the token")
			}
		})
	}
	// None of it spent the token or left a record.
	if err := w.gone(t.Context(), &v1alpha1.EdgeNode{}, "refused-1"); err != nil {
		t.Error(err)
	}
	d.mustJoin(t, w, token, "refused-1")
}

// swapSecret gives one token the secret of another, with right check digits.
func swapSecret(t *testing.T, text, other string) string {
	t.Helper()
	a, b := strings.Split(text, "."), strings.Split(other, ".")
	body := strings.Join([]string{a[0], a[1], b[2], a[3]}, ".")
	forged := body + "." + crcOf(body)
	if _, err := enroll.ParseToken(forged); err != nil {
		t.Fatal(err)
	}
	return forged
}

func TestTwoNodesOneName(t *testing.T) {
	w := real(t)
	w.pool(t, "twins", v1alpha1.NodePoolSpec{})
	first, second, spare := newDevice(t), newDevice(t), newDevice(t)
	first.mustJoin(t, w, w.mint(t, enroll.MintOptions{Pool: "twins"}), "twin")

	// A free token gives nobody a name that is taken.
	free := w.mint(t, enroll.MintOptions{Pool: "twins"})
	wantRefusal(t, second.join(t, w, free, "twin"), enroll.CodeNameConflict)
	second.mustJoin(t, w, free, "twin-2")

	// New hardware: the operator mints for exactly this name. The old device
	// loses it for good, and its session.
	swap := w.mint(t, enroll.MintOptions{Pool: "twins", Node: "twin"})
	spare.mustJoin(t, w, swap, "twin")
	var node v1alpha1.EdgeNode
	w.get(t, &node, "twin")
	if node.Status.Key != spare.fingerprint(t) || !slices.Contains(node.Status.RevokedKeys, first.fingerprint(t)) {
		t.Errorf("key is %s, revoked %v", node.Status.Key, node.Status.RevokedKeys)
	}
	eventually(t, "old session is ended", func() error {
		if len(w.kicks.of("twin")) == 0 {
			return errNotYet
		}
		return nil
	})
	again := w.mint(t, enroll.MintOptions{Pool: "twins", Node: "twin"})
	wantRefusal(t, first.join(t, w, again, "twin"), enroll.CodeNameConflict)
}

func TestManyDevicesRaceForOneName(t *testing.T) {
	w := real(t)
	w.pool(t, "race", v1alpha1.NodePoolSpec{})
	const racers = 6
	devices := make([]*device, racers)
	requests := make([]enroll.Request, racers)
	for i := range devices {
		devices[i] = newDevice(t)
		requests[i] = devices[i].request(t, w.mint(t, enroll.MintOptions{Pool: "race"}), "race-1")
	}
	responses := make([]enroll.Response, racers)
	var group sync.WaitGroup
	for i := range devices {
		group.Go(func() { responses[i] = w.service.Enroll(t.Context(), requests[i], remote) })
	}
	group.Wait()
	winner := -1
	for i, response := range responses {
		if response.Error == nil {
			if winner >= 0 {
				t.Fatal("two devices hold one name")
			}
			winner = i
			continue
		}
		if response.Error.Code != enroll.CodeNameConflict {
			t.Errorf("loser %d was told %v", i, response.Error)
		}
	}
	if winner < 0 {
		t.Fatal("nobody got the name")
	}
	var node v1alpha1.EdgeNode
	w.get(t, &node, "race-1")
	if node.Status.Key != devices[winner].fingerprint(t) {
		t.Error("the record holds another key than the winner's")
	}
}

func TestManyDevicesRaceForOneToken(t *testing.T) {
	w := real(t)
	w.pool(t, "onetoken", v1alpha1.NodePoolSpec{})
	token := w.mint(t, enroll.MintOptions{Pool: "onetoken"})
	const racers = 6
	requests := make([]enroll.Request, racers)
	for i := range requests {
		requests[i] = newDevice(t).request(t, token, "onetoken-"+string(rune('a'+i)))
	}
	responses := make([]enroll.Response, racers)
	var group sync.WaitGroup
	for i := range requests {
		group.Go(func() { responses[i] = w.service.Enroll(t.Context(), requests[i], remote) })
	}
	group.Wait()
	joined := 0
	for _, response := range responses {
		if response.Error == nil {
			joined++
		}
	}
	if joined != 1 {
		t.Fatalf("%d devices joined with one token", joined)
	}
	var nodes v1alpha1.EdgeNodeList
	if err := w.admin.List(t.Context(), &nodes); err != nil {
		t.Fatal(err)
	}
	records := 0
	for i := range nodes.Items {
		if nodes.Items[i].Spec.Pool == "onetoken" {
			records++
		}
	}
	if records != 1 {
		t.Errorf("%d records were left behind", records)
	}
}

func TestTokensListedAndHidden(t *testing.T) {
	w := real(t)
	w.pool(t, "listed", v1alpha1.NodePoolSpec{})
	token := w.mint(t, enroll.MintOptions{Pool: "listed", Node: "listed-1", TTL: time.Minute})
	records, err := w.tokens.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(records, func(r enroll.Record) bool { return r.ID == token.ID() })
	if at < 0 || records[at].Pool != "listed" || records[at].Name != "listed-1" || !records[at].ByOperator || records[at].UsedBy != "" {
		t.Fatalf("records are %+v", records)
	}
	secret, err := w.kube.CoreV1().Secrets(v1alpha1.SystemNamespace).Get(t.Context(), enroll.TokenSecretPrefix+token.ID(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hidden := strings.Split(token.Reveal(), ".")[2]
	for key, value := range secret.Data {
		if strings.Contains(string(value), hidden) {
			t.Errorf("the cluster keeps the token's secret in %s", key)
		}
	}
	d := newDevice(t)
	d.mustJoin(t, w, token, "listed-1")
	if records, err = w.tokens.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	at = slices.IndexFunc(records, func(r enroll.Record) bool { return r.ID == token.ID() })
	if at < 0 || records[at].UsedBy != d.fingerprint(t) {
		t.Fatalf("records are %+v", records)
	}
}

func TestExpiredTokensAreRemoved(t *testing.T) {
	w := real(t)
	past := clocktesting.NewFakePassiveClock(time.Now().Add(-enroll.ExpiredTokenKept - 2*time.Hour))
	old, err := w.tokenStore(past).Mint(t.Context(), enroll.MintOptions{Pool: "whatever"})
	if err != nil {
		t.Fatal(err)
	}
	kept := w.mint(t, enroll.MintOptions{Pool: "whatever"})
	eventually(t, "expired token is removed", func() error {
		_, err := w.kube.CoreV1().Secrets(v1alpha1.SystemNamespace).Get(t.Context(), enroll.TokenSecretPrefix+old.ID(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errNotYet
	})
	if _, err := w.kube.CoreV1().Secrets(v1alpha1.SystemNamespace).Get(t.Context(), enroll.TokenSecretPrefix+kept.ID(), metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// The gateway's own identity can do what joining needs and no more.
func TestGatewayRights(t *testing.T) {
	w := real(t)
	config, err := w.server.Config(v1alpha1.GatewayUser)
	if err != nil {
		t.Fatal(err)
	}
	gateway := clientset(t, config)
	edge, err := client.New(config, client.Options{Scheme: w.admin.Scheme(), Mapper: w.admin.RESTMapper()})
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"list tokens":         discard(gateway.CoreV1().Secrets(v1alpha1.SystemNamespace).List(t.Context(), metav1.ListOptions{})),
		"read other secrets":  discard(gateway.CoreV1().Secrets("kube-system").Get(t.Context(), "x", metav1.GetOptions{})),
		"create pools":        edge.Create(t.Context(), &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: "by-gateway"}}),
		"delete nodes":        edge.Delete(t.Context(), &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "x"}}),
		"change node objects": gateway.CoreV1().Nodes().Delete(t.Context(), "x", metav1.DeleteOptions{}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("the gateway may %s: %v", what, err)
		}
	}
}

// The controllers may bind hubs and remove join tokens, and touch no other
// binding or secret although RBAC alone could not tell them apart.
func TestControllersRights(t *testing.T) {
	w := real(t)
	config, err := w.server.Config(v1alpha1.ControllersUser)
	if err != nil {
		t.Fatal(err)
	}
	controllers := clientset(t, config)
	w.create(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "other"}})
	for what, err := range map[string]error{
		"delete the operators' binding": controllers.RbacV1().ClusterRoleBindings().Delete(t.Context(), v1alpha1.OperatorsGroup, metav1.DeleteOptions{}),
		"delete another secret":         controllers.CoreV1().Secrets(v1alpha1.SystemNamespace).Delete(t.Context(), "other", metav1.DeleteOptions{}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("the controllers may %s: %v", what, err)
		}
	}
}

// A node renews by its key, for as long as that holds its name, whether its
// certificate has ended or not.
func TestRenewal(t *testing.T) {
	w := real(t)
	w.pool(t, "renewal", v1alpha1.NodePoolSpec{})
	d := newDevice(t)
	joined := d.mustJoin(t, w, w.mint(t, enroll.MintOptions{Pool: "renewal"}), "renewal-1")
	certs, err := pki.ParseCertificatesPEM([]byte(joined.NodeCertificate))
	if err != nil {
		t.Fatal(err)
	}
	leaf := certs[0]
	service := func(now time.Time) *enroll.Service {
		s, err := enroll.NewService(enroll.ServiceConfig{RESTConfig: w.gateway, Logger: w.logger, Clock: clocktesting.NewFakePassiveClock(now)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	renew := func(s *enroll.Service, d *device, name string) enroll.Response {
		r := d.request(t, enroll.Token{}, name)
		return s.Renew(t.Context(), "renewal-1", leaf, enroll.RenewRequest{NodeCSR: r.NodeCSR, HubCSR: r.HubCSR}, remote)
	}
	for name, now := range map[string]time.Time{"early": time.Now(), "expired": leaf.NotAfter.Add(time.Hour)} {
		response := renew(service(now), d, "renewal-1")
		if response.Error != nil {
			t.Fatalf("%s: %v", name, response.Error)
		}
		if response.CACertificate != "" {
			t.Error("a renewal says more than certificates")
		}
		if _, err := clientset(t, d.identity(t, w, response.NodeCertificate)).CoreV1().Nodes().Get(t.Context(), "renewal-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s: the new certificate: %v", name, err)
		}
	}
	wantRefusal(t, renew(service(leaf.NotAfter.Add(enroll.RenewWindow+time.Hour)), d, "renewal-1"), enroll.CodeTooLate)
	wantRefusal(t, renew(service(time.Now()), d, "renewal-2"), enroll.CodeRequestInvalid)
	wantRefusal(t, renew(service(time.Now()), newDevice(t), "renewal-1"), enroll.CodeRequestInvalid)
	// New hardware takes the name over: the old key is revoked.
	newDevice(t).mustJoin(t, w, w.mint(t, enroll.MintOptions{Pool: "renewal", Node: "renewal-1"}), "renewal-1")
	wantRefusal(t, renew(service(leaf.NotAfter.Add(time.Hour)), d, "renewal-1"), enroll.CodeRevoked)
}
