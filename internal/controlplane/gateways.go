//go:build linux

package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/gateway/process"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// MainGateway is the id of the gateway that runs in the control plane's daemon.
const MainGateway = "main"

// GatewayOptions of IssueGateway. Dir, ID, Addresses, Listen and Out are
// required.
type GatewayOptions struct {
	// Dir is the cluster directory; it holds the authority.
	Dir string
	// ID of the new gateway, and the addresses nodes and other gateways reach it
	// at, "host:port".
	ID        string
	Addresses []string
	// MainAddresses are those of the control plane's own gateway; needed once,
	// while the cluster has no list yet: a gateway that is not in it is none.
	MainAddresses []string
	// Listen is the gateway's UDP address.
	Listen string
	// Out is the directory for `edge gateway run`.
	Out string
}

// IssueGateway makes, or renews, the directory of a gateway that runs beside the
// control plane's own, and puts it into the cluster's signed list. The control
// plane must run.
func IssueGateway(ctx context.Context, o GatewayOptions) error {
	if err := signed.CheckID(o.ID); err != nil {
		return err
	}
	if o.ID == MainGateway {
		return fmt.Errorf("gateway %s is the control plane's own and has its certificate there", MainGateway)
	}
	spec, creds, err := openCluster(o.Dir)
	if err != nil {
		return err
	}
	if err := writeGatewayDir(spec, creds.ca, o); err != nil {
		return err
	}
	doc, err := changeGateways(ctx, spec, creds, func(list []signed.Gateway) ([]signed.Gateway, error) {
		return addGateway(list, o)
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.Out, process.GatewaysFile), doc, 0o644) //nolint:gosec // it is public: every node has it
}

// RemoveGateway takes a gateway out of the signed list: nodes leave it, and no
// node or gateway believes its certificate any more.
func RemoveGateway(ctx context.Context, dir, id string) error {
	spec, creds, err := openCluster(dir)
	if err != nil {
		return err
	}
	_, err = changeGateways(ctx, spec, creds, func(list []signed.Gateway) ([]signed.Gateway, error) {
		i := slices.IndexFunc(list, func(g signed.Gateway) bool { return g.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("gateway %s is not in the cluster's list", id)
		}
		return slices.Delete(list, i, i+1), nil
	})
	return err
}

// openCluster reads what a running control plane has made.
func openCluster(dir string) (*Spec, *credentials, error) {
	spec, err := LoadSpec(dir)
	if err != nil {
		return nil, nil, err
	}
	layout := Layout{dir}
	store, err := pki.Open(layout.Join("pki"), nil)
	if err != nil {
		return nil, nil, err
	}
	ca, err := store.LoadAuthority("ca")
	if err != nil {
		return nil, nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	return spec, &credentials{store: store, layout: layout, ca: ca}, nil
}

// writeGatewayDir makes the directory of a gateway, but for the list.
func writeGatewayDir(spec *Spec, ca *pki.Authority, o GatewayOptions) error {
	store, err := pki.Open(o.Out, nil)
	if err != nil {
		return err
	}
	for _, r := range []pki.Request{
		memberRequest("gateway", o.ID),
		{Name: "client", CommonName: v1alpha1.GatewayUser, Client: true},
	} {
		if _, _, _, err := store.Ensure(ca, r); err != nil {
			return err
		}
	}
	if err := pki.WriteCertificates(filepath.Join(o.Out, process.CAFile), ca.Certificate); err != nil {
		return err
	}
	ranges, err := spec.Ranges()
	if err != nil {
		return err
	}
	cluster, err := clusterOf(spec, ca)
	if err != nil {
		return err
	}
	s := process.Spec{
		ID: o.ID, Listen: o.Listen, Egress: "egress.sock",
		APIServer: loopbackPort(spec.Ports.API), APIServerURL: spec.Endpoint(),
		Cluster: cluster, Ranges: ranges,
	}
	if err := s.Check(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(o.Out, process.SpecFile), append(raw, '\n'))
}

// memberRequest declares a gateway's certificate: for nodes that dial it, and for
// the mesh, in which it dials too.
func memberRequest(name, id string) pki.Request {
	return pki.Request{Name: name, CommonName: tunnel.ServerName, Server: true, Client: true,
		DNSNames: []string{tunnel.ServerName, tunnel.GatewayName(id)}}
}

// addGateway puts a gateway into the list, in place of one of the same id.
func addGateway(list []signed.Gateway, o GatewayOptions) ([]signed.Gateway, error) {
	set := func(id string, addresses []string) {
		gw := signed.Gateway{ID: id, Addresses: addresses}
		if i := slices.IndexFunc(list, func(g signed.Gateway) bool { return g.ID == id }); i >= 0 {
			list[i] = gw
			return
		}
		list = append(list, gw)
	}
	if len(o.MainAddresses) > 0 {
		set(MainGateway, o.MainAddresses)
	}
	if len(list) == 0 {
		return nil, errors.New("the cluster has no list of gateways yet: say where the control plane's own is reached")
	}
	set(o.ID, o.Addresses)
	return list, nil
}

// apiTimeout bounds each call of the API here; it is on loopback.
const apiTimeout = 15 * time.Second

// changeGateways signs the list anew after change and stores it, from where every
// gateway takes it.
func changeGateways(ctx context.Context, spec *Spec, creds *credentials, change func([]signed.Gateway) ([]signed.Gateway, error)) ([]byte, error) {
	config := creds.config(spec, adminUser)
	config.Timeout = apiTimeout
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	maps := kube.CoreV1().ConfigMaps(v1alpha1.SystemNamespace)
	stored, err := maps.Get(ctx, v1alpha1.GatewaysConfigMap, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return nil, fmt.Errorf("read the list of gateways: %w", err)
	}
	list := &signed.Gateways{}
	if !missing {
		if list, err = signed.VerifyGateways(creds.ca.Certificate, []byte(stored.Data[v1alpha1.GatewaysKey])); err != nil {
			return nil, err
		}
	}
	version := max(list.Version+1, uint64(time.Now().UnixNano()))
	gateways, err := change(list.Gateways)
	if err != nil {
		return nil, err
	}
	doc, err := (&signed.Gateways{Version: version, Gateways: gateways}).Sign(creds.ca)
	if err != nil {
		return nil, err
	}
	data := map[string]string{v1alpha1.GatewaysKey: string(doc)}
	if missing {
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GatewaysConfigMap, Namespace: v1alpha1.SystemNamespace}, Data: data,
		}, metav1.CreateOptions{})
	} else {
		stored.Data = data // a conflict is reported: somebody else changes the list
		_, err = maps.Update(ctx, stored, metav1.UpdateOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("store the list of gateways: %w", err)
	}
	return doc, nil
}

// clusterOf is what a joining device is told.
func clusterOf(s *Spec, ca *pki.Authority) (*enroll.Cluster, error) {
	ip, err := s.ServiceIP()
	if err != nil {
		return nil, err
	}
	return &enroll.Cluster{
		ID: s.ClusterID, Name: s.Name, CACertificate: string(ca.PEM()),
		KubernetesVersion: s.KubernetesVersion, DNSDomain: s.DNSDomain,
		PodCIDRs: s.PodCIDRs, ServiceCIDRs: s.ServiceCIDRs, KubernetesServiceIP: ip.String(),
	}, nil
}
