// Package apitest runs a real etcd, kube-apiserver and kube-controller-manager
// for tests of what talks to them: no kubelet, no scheduler, RBAC and all
// default admission on. Clients authenticate with certificates, so that rights
// and policies are really exercised.
//
//	Start --> etcd --> kube-apiserver --> kube-controller-manager --> Stop
//	          (loopback, own directory)   (signs certificates, runs Deployments,
//	                                       collects garbage)
//
// It is for tests only: etcd speaks plain HTTP on loopback.
package apitest
