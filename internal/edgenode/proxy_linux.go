//go:build linux

package edgenode

import (
	"net/url"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
)

// checkProxyEnv refuses a proxy that the daemon could not use: with it the node
// would never connect, and only its log would say so.
func checkProxyEnv(e ProxyEnv) error {
	find := agent.ProxyFromEnvironment(e.get)
	if find == nil {
		return nil
	}
	// It fails for any address or for none.
	if _, err := find("gateway.invalid:443"); err != nil {
		return &NextError{Err: err, Next: "Correct HTTPS_PROXY, ALL_PROXY or both in the environment, or unset them; then run the same command again."}
	}
	return nil
}

// proxy finds the HTTP proxy for a gateway. It reads the file each time: what an
// `up` has changed holds for the next connection, without a restart.
func (n *node) proxy(hostport string) (*url.URL, error) {
	u, err := proxyFor(n.dir, hostport)
	if err != nil {
		// UDP, and TCP without a proxy, may get through all the same.
		n.log.Error("the node's HTTP proxy is not known and not used", "error", err)
	}
	return u, nil
}

func proxyFor(dir, hostport string) (*url.URL, error) {
	e, err := loadProxyEnv(dir)
	if err != nil {
		return nil, err
	}
	find := agent.ProxyFromEnvironment(e.get)
	if find == nil {
		return nil, nil
	}
	return find(hostport)
}
