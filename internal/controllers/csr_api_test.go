//go:build linux

package controllers_test

import (
	"crypto/x509/pkix"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

const (
	nodeSigner    = certificatesv1.KubeAPIServerClientKubeletSignerName
	hubSigner     = certificatesv1.KubeAPIServerClientSignerName
	servingSigner = certificatesv1.KubeletServingSignerName

	approved  = "approved"
	denied    = "denied"
	undecided = "undecided"
)

var (
	clientUsages  = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	servingUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
)

// decide asks for a certificate as somebody and returns what became of it.
func (w *world) decide(t *testing.T, as kubernetes.Interface, signer string, usages []certificatesv1.KeyUsage, request string) string {
	t.Helper()
	csr, err := as.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
		Spec:       certificatesv1.CertificateSigningRequestSpec{Request: []byte(request), SignerName: signer, Usages: usages},
	}, metav1.CreateOptions{})
	if err != nil {
		return "refused: " + err.Error()
	}
	verdict := ""
	eventually(t, "request is decided", func() error {
		current, err := w.kube.CertificatesV1().CertificateSigningRequests().Get(t.Context(), csr.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range current.Status.Conditions {
			switch condition.Type {
			case certificatesv1.CertificateApproved:
				verdict = approved
				if len(current.Status.Certificate) > 0 {
					return nil
				}
			case certificatesv1.CertificateDenied:
				verdict = denied
				return nil
			}
		}
		return errNotYet
	})
	return verdict
}

func TestCertificates(t *testing.T) {
	w := real(t)
	device, kubelet, _ := w.joined(t, "certs", "certs-1")
	w.joined(t, "certs", "certs-2")
	// Somebody whom an administrator let request certificates, in general.
	if _, err := w.kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "certs-requester"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:node-bootstrapper"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "mallory"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config, err := w.server.Config("mallory")
	if err != nil {
		t.Fatal(err)
	}
	mallory := clientset(t, config)
	if config, err = w.server.Config(v1alpha1.GatewayUser); err != nil {
		t.Fatal(err)
	}
	gateway := clientset(t, config)

	own := func(request string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return request
	}
	fresh, err := pki.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	arbitrary := func(cn, org string, dns ...string) string {
		t.Helper()
		text, err := pki.NewCSR(fresh, pkix.Name{CommonName: cn, Organization: []string{org}}, dns)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	eventually(t, "mallory may request", func() error {
		_, err := mallory.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{Limit: 1})
		return err
	})

	for _, c := range []struct {
		what    string
		as      kubernetes.Interface
		signer  string
		usages  []certificatesv1.KeyUsage
		request string
		want    string
	}{
		{"a node renews", kubelet, nodeSigner, clientUsages, own(enroll.NodeCSR("certs-1", device.key)), approved},
		{"a node renews its hub's", kubelet, hubSigner, clientUsages, own(enroll.HubCSR("certs-1", device.key)), approved},
		{"a node asks for its serving certificate", kubelet, servingSigner, servingUsages, own(enroll.ServingCSR("certs-1", fresh)), approved},
		{"a node asks for another key", kubelet, nodeSigner, clientUsages, own(enroll.NodeCSR("certs-1", fresh)), denied},
		{"a node asks for another's hub", kubelet, hubSigner, clientUsages, own(enroll.HubCSR("certs-2", device.key)), denied},
		{"a node asks to be another by the other signer", kubelet, hubSigner, clientUsages, own(enroll.NodeCSR("certs-2", device.key)), denied},
		{"a serving certificate with more names", kubelet, servingSigner, servingUsages, arbitrary("system:node:certs-1", "system:nodes", "certs-1", "kubernetes.default"), denied},
		{"a serving certificate for another name", kubelet, servingSigner, servingUsages, arbitrary("system:node:certs-1", "system:nodes", "certs-2"), denied},
		{"mallory as a node", mallory, nodeSigner, clientUsages, own(enroll.NodeCSR("certs-1", device.key)), denied},
		{"mallory as a hub", mallory, hubSigner, clientUsages, own(enroll.HubCSR("certs-1", device.key)), denied},
		{"mallory as a server", mallory, servingSigner, servingUsages, own(enroll.ServingCSR("certs-1", fresh)), denied},
		{"mallory in the hubs' group", mallory, hubSigner, clientUsages, arbitrary("mallory", v1alpha1.HubGroup), denied},
		{"the gateway for an unknown node", gateway, nodeSigner, clientUsages, own(enroll.NodeCSR("certs-none", device.key)), denied},
		{"the gateway for a key that is not recorded", gateway, nodeSigner, clientUsages, own(enroll.NodeCSR("certs-1", fresh)), denied},
		{"the gateway for a serving certificate", gateway, servingSigner, servingUsages, own(enroll.ServingCSR("certs-1", device.key)), denied},
	} {
		t.Run(c.what, func(t *testing.T) {
			if got := w.decide(t, c.as, c.signer, c.usages, c.request); got != c.want {
				t.Errorf("it was %s, want %s", got, c.want)
			}
		})
	}

	// NodeRestriction refuses these before anybody decides.
	if got := w.decide(t, kubelet, nodeSigner, clientUsages, own(enroll.NodeCSR("certs-2", device.key))); got == approved || got == undecided {
		t.Errorf("a node asked to be another and was %s", got)
	}
	// What is not in our names is left to others.
	csr, err := mallory.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: []byte(arbitrary("mallory", "mallories")), SignerName: hubSigner, Usages: clientUsages,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// One that is decided after it shows that the controller has seen it.
	w.decide(t, kubelet, nodeSigner, clientUsages, own(enroll.NodeCSR("certs-1", device.key)))
	current, err := w.kube.CertificatesV1().CertificateSigningRequests().Get(t.Context(), csr.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(current.Status.Conditions) > 0 {
		t.Errorf("a stranger's own request was decided: %+v", current.Status.Conditions)
	}
}
