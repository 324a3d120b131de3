package controllers

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// requestOf makes a PEM request from a template.
func requestOf(t *testing.T, key crypto.Signer, template x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func subject(cn string, organizations ...string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: organizations}
}

func TestDecide(t *testing.T) {
	const name = "berlin-1"
	key, other := newKey(t), newKey(t)
	fingerprint, err := enroll.Fingerprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const (
		nodeSigner    = certificatesv1.KubeAPIServerClientKubeletSignerName
		hubSigner     = certificatesv1.KubeAPIServerClientSignerName
		servingSigner = certificatesv1.KubeletServingSignerName
		nodeCN        = v1alpha1.NodeUserPrefix + name
		hubCN         = v1alpha1.HubUserPrefix + name
	)
	record := func() *v1alpha1.EdgeNode {
		return &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.EdgeNodeStatus{Key: fingerprint}}
	}
	type csrSpec = certificatesv1.CertificateSigningRequestSpec
	client := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	server := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	nodeRequest := func() csrSpec {
		return csrSpec{SignerName: nodeSigner, Username: v1alpha1.GatewayUser, Usages: client,
			Request: requestOf(t, key, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes")})}
	}
	hubRequest := func() csrSpec {
		return csrSpec{SignerName: hubSigner, Username: v1alpha1.GatewayUser, Usages: client,
			Request: requestOf(t, key, x509.CertificateRequest{Subject: subject(hubCN, "edge:hubs")})}
	}
	servingRequest := func() csrSpec {
		return csrSpec{SignerName: servingSigner, Username: nodeCN, Groups: []string{"system:nodes", "system:authenticated"}, Usages: server,
			Request: requestOf(t, other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{name}})}
	}
	byNode := func(s csrSpec) csrSpec {
		s.Username, s.Groups = nodeCN, []string{"system:nodes", "system:authenticated"}
		return s
	}
	with := func(s csrSpec, edit func(*csrSpec)) csrSpec {
		edit(&s)
		return s
	}
	asking := func(s csrSpec, key crypto.Signer, template x509.CertificateRequest) csrSpec {
		s.Request = requestOf(t, key, template)
		return s
	}
	extension := func(id ...int) []pkix.Extension {
		value, err := asn1.Marshal([]byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		return []pkix.Extension{{Id: id, Value: value}}
	}
	link := &url.URL{Scheme: "spiffe", Host: "x"}

	for _, c := range []struct {
		what    string
		spec    csrSpec
		node    *v1alpha1.EdgeNode
		verdict Verdict
		reason  string
	}{
		{"enrolment, node", nodeRequest(), record(), Approve, reasonEnrolled},
		{"enrolment, hub", hubRequest(), record(), Approve, reasonEnrolled},
		{"renewal, node", byNode(nodeRequest()), record(), Approve, reasonRenewal},
		{"renewal, hub", byNode(hubRequest()), record(), Approve, reasonRenewal},
		{"serving", servingRequest(), record(), Approve, reasonRenewal},
		{"usages in another order", with(nodeRequest(), func(s *csrSpec) {
			s.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature}
		}), record(), Approve, reasonEnrolled},

		// Not in our names.
		{"stranger's own", csrSpec{SignerName: hubSigner, Username: "alice", Usages: client, Request: requestOf(t, key, x509.CertificateRequest{Subject: subject("alice", "devs")})}, nil, Ignore, ""},
		{"other signer", with(nodeRequest(), func(s *csrSpec) { s.SignerName = "example.com/signer"; s.Username = "alice" }), record(), Ignore, ""},
		{"not a request", with(nodeRequest(), func(s *csrSpec) { s.Request = []byte("x") }), record(), Ignore, ""},
		{"prefix of a prefix", csrSpec{SignerName: hubSigner, Username: "alice", Usages: client, Request: requestOf(t, key, x509.CertificateRequest{Subject: subject("system:nodex", "devs")})}, nil, Ignore, ""},

		// Who asks.
		{"stranger for a node", with(nodeRequest(), func(s *csrSpec) { s.Username = "mallory" }), record(), Deny, reasonRequester},
		{"nobody for a node", with(nodeRequest(), func(s *csrSpec) { s.Username = "" }), record(), Deny, reasonRequester},
		{"stranger in the nodes' group", with(nodeRequest(), func(s *csrSpec) { s.Username, s.Groups = "mallory", []string{"system:nodes"} }), record(), Deny, reasonRequester},
		{"bootstrap token for a node", with(nodeRequest(), func(s *csrSpec) {
			s.Username, s.Groups = "system:bootstrap:abcdef", []string{"system:bootstrappers"}
		}), record(), Deny, reasonRequester},
		{"service account for a hub", with(hubRequest(), func(s *csrSpec) { s.Username = "system:serviceaccount:kube-system:x" }), record(), Deny, reasonRequester},
		{"the controllers for a node", with(nodeRequest(), func(s *csrSpec) { s.Username = v1alpha1.ControllersUser }), record(), Deny, reasonRequester},
		{"another node for a node", with(byNode(nodeRequest()), func(s *csrSpec) { s.Username = "system:node:berlin-2" }), record(), Deny, reasonRequester},
		{"another node for a hub", with(byNode(hubRequest()), func(s *csrSpec) { s.Username = "system:node:berlin-2" }), record(), Deny, reasonRequester},
		{"a name that begins alike", with(byNode(nodeRequest()), func(s *csrSpec) { s.Username = "system:node:berlin-11" }), record(), Deny, reasonRequester},
		{"a node without its group", with(byNode(nodeRequest()), func(s *csrSpec) { s.Groups = []string{"system:authenticated"} }), record(), Deny, reasonRequester},
		{"the hub for its node", with(byNode(nodeRequest()), func(s *csrSpec) { s.Username, s.Groups = hubCN, []string{"edge:hubs"} }), record(), Deny, reasonRequester},
		{"the hub for itself", with(byNode(hubRequest()), func(s *csrSpec) { s.Username, s.Groups = hubCN, []string{"edge:hubs"} }), record(), Deny, reasonRequester},
		{"the gateway in other letters", with(nodeRequest(), func(s *csrSpec) { s.Username = "Edge:gateway" }), record(), Deny, reasonRequester},
		{"the gateway for serving", with(servingRequest(), func(s *csrSpec) { s.Username, s.Groups = v1alpha1.GatewayUser, nil }), record(), Deny, reasonRequester},
		{"a stranger for serving", with(servingRequest(), func(s *csrSpec) { s.Username, s.Groups = "mallory", nil }), record(), Deny, reasonRequester},

		// What is asked for.
		{"hub's name by the kubelet's signer", with(hubRequest(), func(s *csrSpec) { s.SignerName = nodeSigner }), record(), Deny, reasonRequest},
		{"node's name by the hub's signer", with(nodeRequest(), func(s *csrSpec) { s.SignerName = hubSigner }), record(), Deny, reasonRequest},
		{"node's client by the serving signer", with(byNode(nodeRequest()), func(s *csrSpec) { s.SignerName = servingSigner }), record(), Deny, reasonRequest},
		{"serving by the client signer", with(servingRequest(), func(s *csrSpec) { s.SignerName = nodeSigner }), record(), Deny, reasonRequest},
		{"node in the hubs' group", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN, "edge:hubs")}), record(), Deny, reasonRequest},
		{"hub in the nodes' group", asking(hubRequest(), key, x509.CertificateRequest{Subject: subject(hubCN, "system:nodes")}), record(), Deny, reasonRequest},
		{"node in no group", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN)}), record(), Deny, reasonRequest},
		{"node in a second group", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes", "system:masters")}), record(), Deny, reasonRequest},
		{"hub in masters", asking(hubRequest(), key, x509.CertificateRequest{Subject: subject(hubCN, "edge:hubs", "system:masters")}), record(), Deny, reasonRequest},
		{"hub in its group twice", asking(hubRequest(), key, x509.CertificateRequest{Subject: subject(hubCN, "edge:hubs", "edge:hubs")}), record(), Deny, reasonRequest},
		{"a person in the hubs' group", asking(hubRequest(), key, x509.CertificateRequest{Subject: subject("alice", "edge:hubs")}), record(), Deny, reasonRequest},
		{"a person in the nodes' group", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject("alice", "system:nodes")}), record(), Deny, reasonRequest},
		{"no name in the nodes' group", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject("", "system:nodes")}), record(), Deny, reasonRequest},
		{"the empty node", with(asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject("system:node:", "system:nodes")}), func(s *csrSpec) {
			s.Username, s.Groups = "system:node:", []string{"system:nodes"}
		}), &v1alpha1.EdgeNode{Status: v1alpha1.EdgeNodeStatus{Key: fingerprint}}, Deny, reasonRequest},
		{"two names", asking(nodeRequest(), key, x509.CertificateRequest{Subject: pkix.Name{
			Organization: []string{"system:nodes"},
			ExtraNames:   []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "system:node:berlin-2"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: nodeCN}},
		}}), record(), Deny, reasonRequest},
		{"an organizational unit", asking(nodeRequest(), key, x509.CertificateRequest{Subject: pkix.Name{CommonName: nodeCN, Organization: []string{"system:nodes"}, OrganizationalUnit: []string{"x"}}}), record(), Deny, reasonRequest},
		{"a user id", asking(hubRequest(), key, x509.CertificateRequest{Subject: pkix.Name{CommonName: hubCN, Organization: []string{"edge:hubs"},
			ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}, Value: "x"}}}}), record(), Deny, reasonRequest},
		{"client with a DNS name", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{name}}), record(), Deny, reasonRequest},
		{"hub with a DNS name", asking(hubRequest(), key, x509.CertificateRequest{Subject: subject(hubCN, "edge:hubs"), DNSNames: []string{"kubernetes"}}), record(), Deny, reasonRequest},
		{"client with an IP", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}), record(), Deny, reasonRequest},
		{"client with an email", asking(hubRequest(), key, x509.CertificateRequest{Subject: subject(hubCN, "edge:hubs"), EmailAddresses: []string{"a@example.com"}}), record(), Deny, reasonRequest},
		{"client with a URI", asking(hubRequest(), key, x509.CertificateRequest{Subject: subject(hubCN, "edge:hubs"), URIs: []*url.URL{link}}), record(), Deny, reasonRequest},
		{"client that would be a CA", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), ExtraExtensions: extension(2, 5, 29, 19)}), record(), Deny, reasonRequest},
		{"client with any extension", asking(nodeRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), ExtraExtensions: extension(1, 2, 3, 4)}), record(), Deny, reasonRequest},
		{"serving without a name", asking(servingRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes")}), record(), Deny, reasonRequest},
		{"serving for another name", asking(servingRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{"berlin-2"}}), record(), Deny, reasonRequest},
		{"serving for one name more", asking(servingRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{name, "kubernetes.default.svc"}}), record(), Deny, reasonRequest},
		{"serving for a wildcard", asking(servingRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{"*"}}), record(), Deny, reasonRequest},
		{"serving in other letters", asking(servingRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{"BERLIN-1"}}), record(), Deny, reasonRequest},
		{"serving with an IP", asking(servingRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}), record(), Deny, reasonRequest},
		{"serving with an extension", asking(servingRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{name}, ExtraExtensions: extension(2, 5, 29, 19)}), record(), Deny, reasonRequest},
		{"client with server usage", with(nodeRequest(), func(s *csrSpec) { s.Usages = append(server, certificatesv1.UsageClientAuth) }), record(), Deny, reasonRequest},
		{"client with one usage", with(nodeRequest(), func(s *csrSpec) { s.Usages = client[1:] }), record(), Deny, reasonRequest},
		{"client with one usage twice", with(nodeRequest(), func(s *csrSpec) {
			s.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageClientAuth}
		}), record(), Deny, reasonRequest},
		{"client that signs certificates", with(nodeRequest(), func(s *csrSpec) {
			s.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth, certificatesv1.UsageCertSign}
		}), record(), Deny, reasonRequest},
		{"serving with client usage", with(servingRequest(), func(s *csrSpec) { s.Usages = client }), record(), Deny, reasonRequest},
		{"RSA key", asking(nodeRequest(), rsaKey, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes")}), record(), Deny, reasonRequest},
		{"P-384 key", asking(servingRequest(), p384, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{name}}), record(), Deny, reasonRequest},

		// For which node and key.
		{"unknown node", nodeRequest(), nil, Deny, reasonNode},
		{"record of another node", nodeRequest(), &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "berlin-2"}, Status: v1alpha1.EdgeNodeStatus{Key: fingerprint}}, Deny, reasonNode},
		{"declared, never enrolled", nodeRequest(), &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}}, Deny, reasonNode},
		{"serving, never enrolled", servingRequest(), &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}}, Deny, reasonNode},
		{"leaving", nodeRequest(), leaving(record()), Deny, reasonNode},
		{"leaving, serving", servingRequest(), leaving(record()), Deny, reasonNode},
		{"another key", asking(nodeRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes")}), record(), Deny, reasonKey},
		{"another key, hub", asking(hubRequest(), other, x509.CertificateRequest{Subject: subject(hubCN, "edge:hubs")}), record(), Deny, reasonKey},
		{"another key, by the node", byNode(asking(nodeRequest(), other, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes")})), record(), Deny, reasonKey},
		{"revoked key", nodeRequest(), revoked(record(), fingerprint), Deny, reasonKey},
		{"revoked key, serving", asking(servingRequest(), key, x509.CertificateRequest{Subject: subject(nodeCN, "system:nodes"), DNSNames: []string{name}}), revoked(record(), fingerprint), Deny, reasonKey},
	} {
		t.Run(c.what, func(t *testing.T) {
			csr := &certificatesv1.CertificateSigningRequest{Spec: c.spec}
			got := Decide(csr, c.node)
			if got.Verdict != c.verdict || got.Reason != c.reason {
				t.Errorf("decision is %+v, want verdict %d, reason %q", got, c.verdict, c.reason)
			}
			if got.Verdict != Ignore && got.Message == "" {
				t.Error("no message")
			}
		})
	}

	// A request whose signature is not its key's is not parsed at all.
	forged := nodeRequest()
	block, _ := pem.Decode(forged.Request)
	block.Bytes[len(block.Bytes)-1] ^= 1
	forged.Request = pem.EncodeToMemory(block)
	if got := Decide(&certificatesv1.CertificateSigningRequest{Spec: forged}, record()); got.Verdict == Approve {
		t.Errorf("a forged signature was approved: %+v", got)
	}
}

func leaving(node *v1alpha1.EdgeNode) *v1alpha1.EdgeNode {
	now := metav1.NewTime(time.Unix(1, 0))
	node.DeletionTimestamp = &now
	return node
}

func revoked(node *v1alpha1.EdgeNode, key string) *v1alpha1.EdgeNode {
	node.Status.RevokedKeys = []string{key}
	return node
}

// No request may be approved that a mutation of a good one makes, unless its
// names and key are still the good one's.
func FuzzDecide(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	request, err := enroll.NodeCSR("n", key)
	if err != nil {
		f.Fatal(err)
	}
	fingerprint, err := enroll.Fingerprint(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(request), "edge:gateway")
	f.Add([]byte(request), "system:node:n")
	f.Add([]byte(strings.Repeat("-", 10000)), "")
	node := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: v1alpha1.EdgeNodeStatus{Key: fingerprint}}
	f.Fuzz(func(t *testing.T, request []byte, user string) {
		csr := &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: request, SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, Username: user, Groups: []string{"system:nodes"},
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		}}
		if Decide(csr, node).Verdict != Approve {
			return
		}
		parsed, err := enroll.ParseCSR(request)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := enroll.Fingerprint(parsed.PublicKey); err != nil || got != fingerprint {
			t.Fatal("approved for another key")
		}
		if user != "edge:gateway" && user != "system:node:n" {
			t.Fatalf("approved for %q", user)
		}
	})
}
