package edgenode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// proxyNames are what agent.ProxyFromEnvironment reads.
var proxyNames = []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"}

// proxyFile of a node dir keeps the ProxyEnv of whoever converged the node last.
const proxyFile = "proxy.json"

// ProxyEnv are the variables of an environment that name its HTTP proxy. A proxy's
// URL may hold a password: a ProxyEnv belongs into no argument, log or error.
//
// The daemon does not get them as its environment: the programs that it starts
// and the libraries in it would find them there. Only the tunnel's TCP is to go
// through the proxy.
type ProxyEnv map[string]string

// ProxyEnvOf takes the variables that are set out of an environment; getenv is
// os.Getenv.
func ProxyEnvOf(getenv func(string) string) ProxyEnv {
	e := ProxyEnv{}
	for _, name := range proxyNames {
		if v := getenv(name); v != "" {
			e[name] = v
		}
	}
	return e
}

// ParseProxyEnv reads the JSON of a ProxyEnv. Its errors repeat nothing of it.
func ParseProxyEnv(data []byte) (ProxyEnv, error) {
	var e ProxyEnv
	if err := json.Unmarshal(data, &e); err != nil || e == nil {
		return nil, errors.New("proxy variables are not a JSON object of strings")
	}
	for name := range e {
		if !slices.Contains(proxyNames, name) {
			return nil, fmt.Errorf("one of the proxy variables is none of %q", proxyNames)
		}
	}
	return e, nil
}

// get is the getenv of e.
func (e ProxyEnv) get(name string) string { return e[name] }

// keepProxyEnv makes e the one of a node dir, without a file where it is empty.
func keepProxyEnv(dir string, e ProxyEnv) error {
	path := filepath.Join(dir, proxyFile)
	if len(e) == 0 {
		return removeFile(path)
	}
	return writeJSON(path, e)
}

// loadProxyEnv reads what keepProxyEnv kept.
func loadProxyEnv(dir string) (ProxyEnv, error) {
	path := filepath.Join(dir, proxyFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e, err := ParseProxyEnv(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return e, nil
}
