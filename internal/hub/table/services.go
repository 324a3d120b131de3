package table

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

var serviceColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("Type", "From where the service is reached."),
	column("Cluster-IP", "Its first address inside the cluster."),
	column("External-IP", "Its addresses outside, or the name it stands for."),
	column("Port(s)", "Its ports, those on nodes, and their protocols."),
	ageColumn,
	wide("Selector", "Labels of the pods behind it."),
}

func serviceCells(service *corev1.Service, ago since) []any {
	spec := service.Spec
	address := spec.ClusterIP
	if len(spec.ClusterIPs) > 0 {
		address = spec.ClusterIPs[0]
	}
	var ports []string
	for _, p := range spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.NodePort > 0 {
			port += ":" + strconv.Itoa(int(p.NodePort))
		}
		ports = append(ports, port+"/"+string(p.Protocol))
	}
	return []any{
		service.Name, string(spec.Type), cmp.Or(address, none), externalCell(service), cmp.Or(strings.Join(ports, ","), none), ago(service.CreationTimestamp),
		labels.FormatLabels(spec.Selector),
	}
}

func externalCell(service *corev1.Service) string {
	spec := service.Spec
	switch spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return cmp.Or(strings.Join(spec.ExternalIPs, ","), none)
	case corev1.ServiceTypeLoadBalancer:
		balancers := map[string]bool{}
		for _, i := range service.Status.LoadBalancer.Ingress {
			if at := cmp.Or(i.IP, i.Hostname); at != "" {
				balancers[at] = true
			}
		}
		all := append(slices.Sorted(maps.Keys(balancers)), spec.ExternalIPs...)
		return cmp.Or(strings.Join(all, ","), "<pending>")
	case corev1.ServiceTypeExternalName:
		return spec.ExternalName
	}
	return unknown
}

var sliceColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("AddressType", "What the addresses are."),
	column("Ports", "Ports of every endpoint."),
	column("Endpoints", "Addresses of the endpoints."),
	ageColumn,
}

func sliceCells(slice *discoveryv1.EndpointSlice, ago since) []any {
	var ports, addresses []string
	for _, p := range slice.Ports {
		port := "*"
		switch {
		case p.Port != nil:
			port = strconv.Itoa(int(*p.Port))
		case p.Name != nil:
			port = *p.Name
		}
		ports = append(ports, port)
	}
	for _, e := range slice.Endpoints {
		addresses = append(addresses, e.Addresses...)
	}
	return []any{slice.Name, string(slice.AddressType), firstFew(ports), firstFew(addresses), ago(slice.CreationTimestamp)}
}

// firstFew names three at most, and how many there are beside.
func firstFew(all []string) string {
	const few = 3
	if len(all) > few {
		return fmt.Sprintf("%s + %d more...", strings.Join(all[:few], ","), len(all)-few)
	}
	return cmp.Or(strings.Join(all, ","), unset)
}
