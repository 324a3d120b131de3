// Package hubload looks at a hub from outside, under the load of a real node:
// the hub in a process of its own, the objects of a full node, and client-go's
// reflectors as that node's components run them.
//
//	Main (child process)                     this process
//	 hub <---------------- TLS ------------- Follow (kubelet, kube-proxy, CoreDNS)
//	  |  \ agent, with Process.Gateway
//	  v   v
//	apiserver <---------------------------- FillNode, FillServices
//
// It is for tests and benchmarks; nothing that is shipped imports it. It starts
// no apiserver and no gateway.
package hubload
