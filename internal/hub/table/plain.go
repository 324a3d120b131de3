package table

import (
	"cmp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

var namespaceColumns = []metav1.TableColumnDefinition{nameColumn, column("Status", "Active, or Terminating."), ageColumn}

func namespaceCells(n *corev1.Namespace, ago since) []any {
	return []any{n.Name, string(n.Status.Phase), ago(n.CreationTimestamp)}
}

var configMapColumns = []metav1.TableColumnDefinition{nameColumn, column("Data", "How many entries it has."), ageColumn}

func configMapCells(c *corev1.ConfigMap, ago since) []any {
	return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), ago(c.CreationTimestamp)}
}

var secretColumns = []metav1.TableColumnDefinition{nameColumn, column("Type", "What it is for."), column("Data", "How many entries it has."), ageColumn}

// secretCells tell how many entries a secret has, and nothing of what is in them.
func secretCells(s *corev1.Secret, ago since) []any {
	return []any{s.Name, string(s.Type), int64(len(s.Data)), ago(s.CreationTimestamp)}
}

var serviceCIDRColumns = []metav1.TableColumnDefinition{nameColumn, column("CIDRs", "Ranges that services get their addresses from."), ageColumn}

func serviceCIDRCells(c *networkingv1.ServiceCIDR, ago since) []any {
	return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), ago(c.CreationTimestamp)}
}

var runtimeClassColumns = []metav1.TableColumnDefinition{nameColumn, column("Handler", "The runtime's name for it."), ageColumn}

func runtimeClassCells(c *nodev1.RuntimeClass, ago since) []any {
	return []any{c.Name, c.Handler, ago(c.CreationTimestamp)}
}

var csiDriverColumns = []metav1.TableColumnDefinition{
	nameColumn,
	flag("AttachRequired", "Whether volumes are attached before they are mounted."),
	flag("PodInfoOnMount", "Whether the driver is told of the pod."),
	flag("StorageCapacity", "Whether pods are placed by the capacity it tells."),
	column("TokenRequests", "For whom it is given tokens of the pod's account."),
	flag("RequiresRepublish", "Whether it is asked again and again."),
	column("Modes", "How long its volumes last."),
	ageColumn,
}

func csiDriverCells(d *storagev1.CSIDriver, ago since) []any {
	spec := d.Spec
	tokens := unset
	if spec.TokenRequests != nil {
		var audiences []string
		for _, t := range spec.TokenRequests {
			audiences = append(audiences, t.Audience)
		}
		tokens = strings.Join(audiences, ",")
	}
	var modes []string
	for _, m := range spec.VolumeLifecycleModes {
		modes = append(modes, string(m))
	}
	return []any{
		d.Name, ptr.Deref(spec.AttachRequired, true), ptr.Deref(spec.PodInfoOnMount, false), ptr.Deref(spec.StorageCapacity, false), tokens,
		ptr.Deref(spec.RequiresRepublish, false), cmp.Or(strings.Join(modes, ","), none), ago(d.CreationTimestamp),
	}
}

// flag is a column that is true or false.
func flag(name, description string) metav1.TableColumnDefinition {
	c := column(name, description)
	c.Type = "boolean"
	return c
}
