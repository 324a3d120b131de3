//go:build linux

package controlplane

import (
	"fmt"
	"strings"
)

// Arguments of the children. Building them is apart from starting them so that
// every flag has a test. Paths are absolute but the egress socket's.

// etcdArgs: one member, TLS for clients and peers.
//
// The heartbeat and election timeouts are a tenth of etcd's defaults: with one
// member on loopback there is nobody to wait for, and the first election is
// then over within 100 ms instead of up to a second. They must be raised before
// a second member joins.
func etcdArgs(s *Spec, l Layout) []string {
	client := "https://" + loopbackPort(s.Ports.EtcdClient)
	peer := "https://" + loopbackPort(s.Ports.EtcdPeer)
	return []string{
		"--name=" + s.Name,
		"--data-dir=" + l.Join("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + s.Name + "=" + peer,
		"--initial-cluster-token=" + s.UID,
		"--heartbeat-interval=10",
		"--election-timeout=100",
		"--cert-file=" + l.PKI("etcd-server.crt"),
		"--key-file=" + l.PKI("etcd-server.key"),
		"--client-cert-auth=true",
		"--trusted-ca-file=" + l.PKI("etcd-ca.crt"),
		"--peer-cert-file=" + l.PKI("etcd-peer.crt"),
		"--peer-key-file=" + l.PKI("etcd-peer.key"),
		"--peer-client-cert-auth=true",
		"--peer-trusted-ca-file=" + l.PKI("etcd-ca.crt"),
		"--tls-min-version=TLS1.3",
		"--snapshot-count=10000",
	}
}

// apiserverArgs: loopback only, no anonymous requests, Node and RBAC
// authorization, and everything towards nodes and pods through the egress
// socket. No endpoint reconciler: default/kubernetes is answered by each node's
// hub, and 127.0.0.1 would be a lie to anybody else.
func apiserverArgs(s *Spec, l Layout) []string {
	return []string{
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", s.Ports.API),
		"--endpoint-reconciler-type=none",
		"--etcd-servers=https://" + loopbackPort(s.Ports.EtcdClient),
		"--etcd-cafile=" + l.PKI("etcd-ca.crt"),
		"--etcd-certfile=" + l.PKI("apiserver-etcd-client.crt"),
		"--etcd-keyfile=" + l.PKI("apiserver-etcd-client.key"),
		"--client-ca-file=" + l.PKI("ca.crt"),
		"--tls-cert-file=" + l.PKI("apiserver.crt"),
		"--tls-private-key-file=" + l.PKI("apiserver.key"),
		"--tls-min-version=VersionTLS12",
		"--anonymous-auth=false",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--kubelet-client-certificate=" + l.PKI("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + l.PKI("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + l.PKI("ca.crt"),
		"--proxy-client-cert-file=" + l.PKI("front-proxy-client.crt"),
		"--proxy-client-key-file=" + l.PKI("front-proxy-client.key"),
		"--requestheader-client-ca-file=" + l.PKI("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--service-account-issuer=" + serviceAccountIssuer(s),
		"--service-account-key-file=" + l.PKI("sa.pub"),
		"--service-account-signing-key-file=" + l.PKI("sa.key"),
		"--api-audiences=" + serviceAccountIssuer(s),
		"--service-cluster-ip-range=" + strings.Join(s.ServiceCIDRs, ","),
		"--egress-selector-config-file=" + l.Conf("egress.yaml"),
		"--enable-aggregator-routing=true",
		"--encryption-provider-config=" + l.Conf("encryption.yaml"),
		"--encryption-provider-config-automatic-reload=true",
		"--audit-policy-file=" + l.Conf("audit-policy.yaml"),
		"--audit-log-path=" + l.Join("logs", "audit.log"),
		"--audit-log-mode=batch",
		"--audit-log-maxsize=50", // MiB a file
		"--audit-log-maxbackup=5",
		"--audit-log-maxage=30", // days
		"--profiling=false",
		"--event-ttl=1h",
		// Watches live for minutes; without this a stop waits them all out.
		"--shutdown-watch-termination-grace-period=2s",
	}
}

func serviceAccountIssuer(s *Spec) string {
	return "https://kubernetes.default.svc." + s.DNSDomain
}

// controllerManagerArgs: one instance, so no leader election (an unclean
// restart would wait out the old lease).
func controllerManagerArgs(s *Spec, l Layout) []string {
	kubeconfig := l.Conf("kube-controller-manager.kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", s.Ports.ControllerManager),
		"--tls-cert-file=" + l.PKI("controller-manager-server.crt"),
		"--tls-private-key-file=" + l.PKI("controller-manager-server.key"),
		"--leader-elect=false",
		"--cluster-name=" + s.Name,
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + strings.Join(s.PodCIDRs, ","),
		fmt.Sprintf("--node-cidr-mask-size=%d", s.NodeMask),
		"--service-cluster-ip-range=" + strings.Join(s.ServiceCIDRs, ","),
		"--root-ca-file=" + l.PKI("ca.crt"),
		"--client-ca-file=" + l.PKI("ca.crt"),
		"--requestheader-client-ca-file=" + l.PKI("front-proxy-ca.crt"),
		"--service-account-private-key-file=" + l.PKI("sa.key"),
		"--cluster-signing-cert-file=" + l.PKI("ca.crt"),
		"--cluster-signing-key-file=" + l.PKI("ca.key"),
		"--use-service-account-credentials=true",
		// csrapproving is upstream's approver of node certificates; ours ties
		// requester to name and key, so upstream's must not run beside it.
		"--controllers=*,-certificatesigningrequest-approving-controller",
		// Its own limit of 20 requests a second made every first join wait about
		// 5 s for its controllers to be set up; it is beside the apiserver, which
		// has priority and fairness.
		"--kube-api-qps=200",
		"--kube-api-burst=400",
		"--profiling=false",
	}
}

func schedulerArgs(s *Spec, l Layout) []string {
	kubeconfig := l.Conf("kube-scheduler.kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", s.Ports.Scheduler),
		"--tls-cert-file=" + l.PKI("scheduler-server.crt"),
		"--tls-private-key-file=" + l.PKI("scheduler-server.key"),
		"--client-ca-file=" + l.PKI("ca.crt"),
		"--requestheader-client-ca-file=" + l.PKI("front-proxy-ca.crt"),
		"--leader-elect=false",
		"--profiling=false",
	}
}
