// Package controlplane is the control plane's daemon and what converges a host
// to it: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as
// child processes of upstream's own programs, and the gateway and controllers
// in process. It needs no root.
//
//	edge control-plane up   --dir D   writes nothing upstream: starts the daemon, waits for Ready
//	edge control-plane run  --dir D   the daemon
//	edge control-plane down --dir D   stops everything in reverse order
//
// What overlaps at start (an arrow means "waits for"):
//
//	PKI, configuration --> etcd --> kube-apiserver --> CRDs, RBAC, policies --> controllers --> Ready
//	                   \-> kube-controller-manager, kube-scheduler (they retry until the API answers)
//	                   \-> gateway: egress socket, QUIC listener (admits once its cache has synced)
//
// D is the cluster directory (see Layout). The daemon's working directory is D,
// so that the egress socket's path stays short enough for sun_path. The package
// never decides a cluster's shape: the engine writes Spec, the daemon obeys it.
package controlplane
