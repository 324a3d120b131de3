// Package v1alpha1 holds the custom resources of edgewright.dev/v1alpha1: the
// declared state that Terraform, Pulumi, GitOps and kubectl all write and that
// the controllers in internal/controllers reconcile.
//
//	NodePool (cluster)         the nodes of one site, and what they share
//	EdgeNode (cluster)         one declared or joined node, and who it may be
//	UnitDeployment (namespace) one workload, put into pools with overrides
//
// The package never talks to a cluster: it holds types, their CRDs (crds/,
// generated) and names that more than one component must agree on.
//
// +kubebuilder:object:generate=true
// +groupName=edgewright.dev
package v1alpha1
