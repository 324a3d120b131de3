package enroll

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"golang.org/x/sync/errgroup"
)

// NodeLabel on a CertificateSigningRequest names the node it is for, so that
// `kubectl get csr -l` finds a node's.
const NodeLabel = "edgewright.dev/node"

type certificatePair struct {
	node string
	hub  string
}

// certificates has both requests signed, side by side.
func (s *Service) certificates(ctx context.Context, req Request) (certificatePair, error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	var pair certificatePair
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		pair.node, err = s.certificate(ctx, req.Name, certificatesv1.KubeAPIServerClientKubeletSignerName, req.NodeCSR)
		return err
	})
	group.Go(func() (err error) {
		pair.hub, err = s.certificate(ctx, req.Name, certificatesv1.KubeAPIServerClientSignerName, req.HubCSR)
		return err
	})
	return pair, group.Wait()
}

// certificate asks for one certificate and waits until it is there, refused,
// or the context ends.
func (s *Service) certificate(ctx context.Context, name, signer, request string) (string, error) {
	csrs := s.kube.CertificatesV1().CertificateSigningRequests()
	csr, err := csrs.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "edge-node-" + name + "-",
			Labels:       map[string]string{NodeLabel: name},
		},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    []byte(request),
			SignerName: signer,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request certificate of node %s from %s: %w", name, signer, err)
	}
	for {
		watcher, err := csrs.Watch(ctx, metav1.ListOptions{
			FieldSelector:   fields.OneTermEqualSelector("metadata.name", csr.Name).String(),
			ResourceVersion: csr.ResourceVersion,
		})
		if err != nil {
			return "", fmt.Errorf("watch certificate request %s of node %s: %w", csr.Name, name, err)
		}
		current, done, err := awaitCertificate(ctx, watcher, csr)
		watcher.Stop()
		if err != nil {
			return "", fmt.Errorf("certificate of node %s from %s: %w", name, signer, err)
		}
		if done {
			return checkCertificate(current, request)
		}
		// The watch ended early. Read where things are, and watch from there.
		if csr, err = csrs.Get(ctx, csr.Name, metav1.GetOptions{}); err != nil {
			return "", fmt.Errorf("read certificate request %s of node %s: %w", current.Name, name, err)
		}
		if done, err := certificateDone(csr); err != nil {
			return "", fmt.Errorf("certificate of node %s from %s: %w", name, signer, err)
		} else if done {
			return checkCertificate(csr, request)
		}
	}
}

// awaitCertificate follows a watch until the request is decided. done is false
// if the watch ended before.
func awaitCertificate(ctx context.Context, watcher watch.Interface, csr *certificatesv1.CertificateSigningRequest) (*certificatesv1.CertificateSigningRequest, bool, error) {
	for {
		select {
		case <-ctx.Done():
			return csr, false, fmt.Errorf("request %s was not signed in time: %w", csr.Name, context.Cause(ctx))
		case event, ok := <-watcher.ResultChan():
			if !ok || event.Type == watch.Error {
				return csr, false, nil
			}
			current, isCSR := event.Object.(*certificatesv1.CertificateSigningRequest)
			if !isCSR || current.Name != csr.Name {
				continue
			}
			if event.Type == watch.Deleted {
				return csr, false, fmt.Errorf("request %s was deleted before it was signed", csr.Name)
			}
			done, err := certificateDone(current)
			if done || err != nil {
				return current, done, err
			}
		}
	}
}

// certificateDone says whether there is a certificate; an error says that
// there will be none.
func certificateDone(csr *certificatesv1.CertificateSigningRequest) (bool, error) {
	for _, condition := range csr.Status.Conditions {
		if condition.Status == corev1.ConditionFalse {
			continue
		}
		switch condition.Type {
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			return false, fmt.Errorf("request %s: %s: %s: %s", csr.Name, condition.Type, condition.Reason, condition.Message)
		}
	}
	return len(csr.Status.Certificate) > 0, nil
}

// checkCertificate makes sure that what was signed is what was asked for.
func checkCertificate(csr *certificatesv1.CertificateSigningRequest, request string) (string, error) {
	req, err := ParseCSR([]byte(request))
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(csr.Status.Certificate)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", fmt.Errorf("request %s: the signer returned no PEM certificate", csr.Name)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("request %s: parse certificate: %w", csr.Name, err)
	}
	want, err := Fingerprint(req.PublicKey)
	if err != nil {
		return "", err
	}
	got, err := Fingerprint(certificate.PublicKey)
	if err != nil {
		return "", err
	}
	if got != want || certificate.Subject.CommonName != req.Subject.CommonName {
		return "", errors.New("request " + csr.Name + ": the certificate is not the one requested")
	}
	return string(csr.Status.Certificate), nil
}
