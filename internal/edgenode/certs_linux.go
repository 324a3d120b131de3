//go:build linux

package edgenode

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/hub"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/podnet"
)

// cachedCertificate loads a pair of files and keeps it until one of them
// changes.
func cachedCertificate(certFile, keyFile string) func() (*tls.Certificate, error) {
	var mu sync.Mutex // guards what follows
	var have *tls.Certificate
	var read [2]time.Time
	return func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		var now [2]time.Time
		for i, f := range []string{certFile, keyFile} {
			st, err := os.Stat(f)
			if err != nil {
				return nil, err
			}
			now[i] = st.ModTime()
		}
		if have != nil && now == read {
			return have, nil
		}
		cert, err := pki.LoadTLS(certFile, keyFile)
		if err != nil {
			if have != nil {
				return have, nil // between two writes; the old one still serves
			}
			return nil, err
		}
		have, read = &cert, now
		return have, nil
	}
}

// localPKI is the authority that only this node trusts, and what it has signed.
type localPKI struct {
	store *pki.Store
	ca    *pki.Authority
	// kubeletCA signs whom the kubelet takes beside the cluster's: the hub, for
	// operators on the node, and nobody else. What ca signs is nothing to it.
	kubeletCA *pki.Authority
	// apiNames and apiIPs are the names and addresses under which pods know the apiserver.
	apiNames []string
	apiIPs   []net.IP
}

// Names of the certificates in the local store.
const (
	localCA        = "ca"
	localHub       = "hub"
	localKubelet   = "kubelet"
	localKubeProxy = "kube-proxy"
	localCoreDNS   = "coredns"
	localNode      = "node"
	localAdmin     = "admin"
	// localKubeletCA signs localOperator alone, which the hub shows the kubelet.
	localKubeletCA = "kubelet-ca"
	localOperator  = "operator"
	// localAPI is what the hub answers pods with while the node is cut off.
	localAPI = "kubernetes"
)

func openLocalPKI(dir, node string, cluster joined) (*localPKI, error) {
	store, err := pki.Open(dir, nil)
	if err != nil {
		return nil, err
	}
	ca, err := store.Authority(localCA, "edge local CA of node "+node)
	if err != nil {
		return nil, err
	}
	kubeletCA, err := store.Authority(localKubeletCA, "edge local CA of kubelet clients of node "+node)
	if err != nil {
		return nil, err
	}
	p := &localPKI{
		store: store, ca: ca, kubeletCA: kubeletCA,
		apiNames: []string{"kubernetes", "kubernetes.default", apiserverName, apiserverName + "." + cluster.DNSDomain},
		apiIPs:   []net.IP{podnet.APIAddress.AsSlice()},
	}
	if ip := net.ParseIP(cluster.KubernetesServiceIP); ip != nil {
		p.apiIPs = append(p.apiIPs, ip)
	}
	return p, p.ensure()
}

// ensure makes every certificate that is missing or due.
func (p *localPKI) ensure() error {
	requests := []pki.Request{{
		Name: localHub, CommonName: "edge:local:hub", Server: true,
		IPs: []net.IP{net.ParseIP(loopback)}, DNSNames: []string{"localhost"},
	}, {
		Name: localAPI, CommonName: "edge:local:kubernetes", Server: true, IPs: p.apiIPs, DNSNames: p.apiNames,
	}}
	for name, caller := range map[string]hub.Caller{
		localKubelet: hub.CallerKubelet, localKubeProxy: hub.CallerKubeProxy, localCoreDNS: hub.CallerCoreDNS,
		localNode: hub.CallerNode, localAdmin: hub.CallerAdmin,
	} {
		requests = append(requests, pki.Request{Name: name, CommonName: string(caller), Client: true})
	}
	for _, r := range requests {
		if _, _, _, err := p.store.Ensure(p.ca, r); err != nil {
			return err
		}
	}
	_, _, _, err := p.store.Ensure(p.kubeletCA, pki.Request{Name: localOperator, CommonName: hub.OperatorUser, Client: true})
	return err
}

// kubeconfig writes a caller's kubeconfig for the hub.
func (p *localPKI) kubeconfig(path, name string) error {
	_, err := pki.WriteKubeconfig(path, pki.KubeconfigOptions{
		Server:   fmt.Sprintf("https://%s:%d", loopback, hubPort),
		CAPEM:    p.ca.PEM(),
		CertFile: p.store.CertFile(name),
		KeyFile:  p.store.KeyFile(name),
	})
	return err
}

const (
	// renewLook is how often certificates are looked at: often enough that a
	// year's certificate is renewed on its day, and one of minutes in time.
	renewLook = 30 * time.Second
	// certRetry is the wait after a failure where what is there still serves, or
	// has for as long as the node is cut.
	certRetry = 5 * time.Second
	// csrPoll is how often a pending request is looked at.
	csrPoll = 200 * time.Millisecond
	// csrPatience bounds the wait for one request: approver and signer take
	// well under a second where they run at all.
	csrPatience = 2 * time.Minute
)

// wantedCertificate is one certificate of the cluster's CA that the node keeps.
type wantedCertificate struct {
	file   string // in pki/
	signer string
	usages []certificatesv1.KeyUsage
	csr    func() (string, error)
	key    *ecdsa.PrivateKey
	// trusted says whether the certificate there is comes from the cluster.
	ca *x509.CertPool
}

// leaf is the certificate in a file, nil where there is none of the wanted key.
func (w *wantedCertificate) leaf(path string) *x509.Certificate {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	certs, err := pki.ParseCertificatesPEM(data)
	if err != nil || !w.key.PublicKey.Equal(certs[0].PublicKey) {
		return nil
	}
	return certs[0]
}

// due says that there is no certificate, that it is not the cluster's, or that
// it is to be renewed (enroll.RenewAt).
func (w *wantedCertificate) due(path string, now time.Time) bool {
	leaf := w.leaf(path)
	if leaf == nil {
		return true
	}
	opts := x509.VerifyOptions{Roots: w.ca, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: leaf.NotBefore.Add(time.Second)}
	if _, err := leaf.Verify(opts); err != nil {
		return true
	}
	return !now.Before(enroll.RenewAt(leaf))
}

// keepCertificates asks for every certificate that is due, now and for as long
// as ctx lasts. first is closed once all have been there, due or not. What is there
// stays in use until its successor is.
func (n *node) keepCertificates(ctx context.Context, client kubernetes.Interface, want []wantedCertificate, first chan<- struct{}) error {
	done := false
	for {
		pause, missing := renewLook, false
		asked := want
		if err := n.renewEnded(ctx, want); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// Without it no other can be asked for; each would wait in vain for a
			// link that this one brings.
			pause, missing, asked = certRetry, true, nil
			n.log.Warn("the node's certificate has ended and was not renewed, trying again", "error", err)
		}
		for i := range asked {
			w := &asked[i]
			path := n.pki(w.file)
			if !w.due(path, n.now()) {
				continue
			}
			if err := n.request(ctx, client, w); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				if leaf := w.leaf(path); leaf == nil || n.now().After(leaf.NotAfter) {
					missing = true
				}
				pause = min(pause, certRetry)
				n.log.Warn("a certificate is due and was not to be had, trying again", "file", w.file, "error", err)
			}
		}
		if !missing && !done {
			done = true
			close(first)
		}
		if !done {
			pause = joinRetry // somebody waits for the node
		}
		if n.wait(ctx, pause) != nil {
			return nil
		}
	}
}

// renewEnded renews the client certificates through a gateway once the node's own
// has ended: nothing else can be asked with it, the API neither.
func (n *node) renewEnded(ctx context.Context, want []wantedCertificate) error {
	var own *wantedCertificate
	for i := range want {
		if want[i].file == nodeCertFile {
			own = &want[i]
		}
	}
	if own == nil {
		return nil
	}
	leaf := own.leaf(n.pki(own.file))
	if leaf == nil || !n.now().After(leaf.NotAfter) {
		return nil
	}
	nodeCSR, err := enroll.NodeCSR(n.spec.Name, own.key)
	if err != nil {
		return err
	}
	hubCSR, err := enroll.HubCSR(n.spec.Name, own.key)
	if err != nil {
		return err
	}
	resp, err := agent.Renew(ctx, agent.RenewConfig{
		Gateways: n.spec.Gateways, RootCAs: own.ca, Certificate: n.certificate(nodeCertFile),
		Proxy: n.proxy, Transport: n.transport.beside(),
	}, enroll.RenewRequest{NodeCSR: nodeCSR, HubCSR: hubCSR})
	if err != nil {
		return err
	}
	// The hub's first: cut short between the two, all of it is done again.
	for _, c := range []struct{ file, text string }{{hubCertFile, resp.HubCertificate}, {nodeCertFile, resp.NodeCertificate}} {
		if err := n.keepCertificate(own.key, c.file, c.text); err != nil {
			return fmt.Errorf("renewed certificate: %w", err)
		}
	}
	n.log.Info("the node's certificate had ended and was renewed through a gateway", "ended", leaf.NotAfter)
	if n.renewed != nil {
		n.renewed()
	}
	return nil
}

// request asks the cluster for one certificate and writes it down.
func (n *node) request(ctx context.Context, client kubernetes.Interface, w *wantedCertificate) error {
	ctx, cancel := context.WithTimeout(ctx, csrPatience)
	defer cancel()
	text, err := w.csr()
	if err != nil {
		return err
	}
	csr, err := client.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "edge-" + n.spec.Name + "-"},
		Spec:       certificatesv1.CertificateSigningRequestSpec{Request: []byte(text), SignerName: w.signer, Usages: w.usages},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("request certificate %s: %w", w.file, err)
	}
	for {
		for _, c := range csr.Status.Conditions {
			if c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
				return fmt.Errorf("request %s for certificate %s: %s: %s", csr.Name, w.file, c.Reason, c.Message)
			}
		}
		if len(csr.Status.Certificate) > 0 {
			break
		}
		if err := n.wait(ctx, csrPoll); err != nil {
			return fmt.Errorf("request %s for certificate %s is neither signed nor refused: %w", csr.Name, w.file, err)
		}
		next, err := client.CertificatesV1().CertificateSigningRequests().Get(ctx, csr.Name, metav1.GetOptions{})
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			n.log.Debug("look at a certificate request", "request", csr.Name, "error", err)
			continue
		}
		csr = next
	}
	certs, err := pki.ParseCertificatesPEM(csr.Status.Certificate)
	if err != nil {
		return fmt.Errorf("request %s for certificate %s: %w", csr.Name, w.file, err)
	}
	if !w.key.PublicKey.Equal(certs[0].PublicKey) {
		return fmt.Errorf("request %s for certificate %s: signed for another key", csr.Name, w.file)
	}
	return pki.WriteCertificates(n.pki(w.file), certs...)
}

// clusterCertificates are the three that the cluster's CA signs for this node.
func (n *node) clusterCertificates(id *identity, servingKey *ecdsa.PrivateKey) []wantedCertificate {
	client := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	server := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	return []wantedCertificate{
		{file: servingName + ".crt", signer: certificatesv1.KubeletServingSignerName, usages: server, key: servingKey, ca: id.ca,
			csr: func() (string, error) { return enroll.ServingCSR(n.spec.Name, servingKey) }},
		{file: nodeCertFile, signer: certificatesv1.KubeAPIServerClientKubeletSignerName, usages: client, key: id.key, ca: id.ca,
			csr: func() (string, error) { return enroll.NodeCSR(n.spec.Name, id.key) }},
		{file: hubCertFile, signer: certificatesv1.KubeAPIServerClientSignerName, usages: client, key: id.key, ca: id.ca,
			csr: func() (string, error) { return enroll.HubCSR(n.spec.Name, id.key) }},
	}
}

// placeholder puts a certificate of the local authority where the kubelet's
// serving certificate will be, so that the kubelet need not wait for the
// cluster: until the real one is there, and the kubelet reads it, the cluster
// refuses to talk to it.
func (n *node) placeholder(local *localPKI) (*ecdsa.PrivateKey, error) {
	key, err := loadOrMakeKey(n.pki(servingName + ".key"))
	if err != nil {
		return nil, err
	}
	path := n.pki(servingName + ".crt")
	if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	cert, err := local.ca.Sign(pki.Request{Name: servingName, CommonName: n.spec.Name, DNSNames: []string{n.spec.Name}, Server: true}, &key.PublicKey, time.Now())
	if err != nil {
		return nil, err
	}
	return key, pki.WriteCertificates(path, cert)
}
