// Package controllers is what keeps the cluster's objects true to what was
// declared: it approves certificates, places nodes, removes them, counts pools
// and turns unit deployments into workloads. It also holds the manifests the
// cluster needs before any of that can work, and installs them.
//
//	object                        controller    what it does
//	CertificateSigningRequest     certificates  approves or denies what is in our names (Decide)
//	EdgeNode, NodePool, Node      nodes         labels, annotations, taints, status, hub binding
//	EdgeNode being deleted        nodes         cordon, drain, revoke, remove (leave.go)
//	NodePool, EdgeNode            pools         counts, members; deletion waits for its nodes
//	UnitDeployment                units         a Deployment per pool, one Service, status per unit
//	Secret (join token)           tokens        removes expired ones
//	EdgeNode, Node                policies      what may be dialled through a node, signed
//	NodePool, EdgeNode            places        ConfigMap edge-places, for the policy edge-only-pods
//	EdgeNode                      kept          ConfigMap edge-kept-ready, for the policy of that name
//	Pod                           tolerations   for ever, where edge-only-pods did not see it
//
// A cut (cut.go, kept_controller.go, manifests/policy-pods.yaml) is no crash: pods
// that only land on edge nodes tolerate outages for ever, and only the end of their
// pool's autonomy deletes them.
//
// All of them run as edge:controllers with the rights in manifests/, against
// one apiserver, in one process; nothing here is a webhook, so that nothing here
// has to be up for the apiserver to work.
//
// The package never signs a certificate (the authority that it is given signs
// nodes' policies), never writes a node's key except to revoke it, and never
// touches labels, taints or workloads it did not make.
package controllers
