package table

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var nodeColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("Status", "Whether the node is ready, and takes new pods."),
	column("Roles", "What its labels say it is for."),
	ageColumn,
	column("Version", "Version of its kubelet."),
	wide("Internal-IP", "Its first address inside the cluster."),
	wide("External-IP", "Its first address outside."),
	wide("OS-Image", "Its operating system."),
	wide("Kernel-Version", "Its kernel, and for what processor."),
	wide("Container-Runtime", "What runs its containers."),
}

func nodeCells(node *corev1.Node, ago since) []any {
	info := node.Status.NodeInfo
	kernel := cmp.Or(info.KernelVersion, unknown)
	if info.Architecture != "" {
		kernel += " (" + info.Architecture + ")"
	}
	return []any{
		node.Name, nodeStatus(node), cmp.Or(strings.Join(nodeRoles(node), ","), none), ago(node.CreationTimestamp), info.KubeletVersion,
		nodeAddress(node, corev1.NodeInternalIP), nodeAddress(node, corev1.NodeExternalIP), cmp.Or(info.OSImage, unknown), kernel, cmp.Or(info.ContainerRuntimeVersion, unknown),
	}
}

func nodeStatus(node *corev1.Node) string {
	status := "Unknown"
	for _, c := range node.Status.Conditions {
		switch {
		case c.Type != corev1.NodeReady:
		case c.Status == corev1.ConditionTrue:
			status = "Ready"
		default:
			status = "NotReady"
		}
	}
	if node.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

// The labels that say what a node is for: node-role.kubernetes.io/<role>, and of
// old kubernetes.io/role=<role>.
const (
	rolePrefix = "node-role.kubernetes.io/"
	roleLabel  = "kubernetes.io/role"
)

func nodeRoles(node *corev1.Node) []string {
	roles := map[string]bool{}
	for label, value := range node.Labels {
		role, ok := strings.CutPrefix(label, rolePrefix)
		if label == roleLabel {
			role, ok = value, true
		}
		if ok && role != "" {
			roles[role] = true
		}
	}
	return slices.Sorted(maps.Keys(roles))
}

func nodeAddress(node *corev1.Node, kind corev1.NodeAddressType) string {
	for _, a := range node.Status.Addresses {
		if a.Type == kind {
			return a.Address
		}
	}
	return none
}
