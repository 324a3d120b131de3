//go:build linux

package edgenode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// documents keeps what the agent wants to find again after a restart, in pki/:
// what the cluster's authority signed for the node, and which networks it met.
type documents struct{ dir string }

// documentFiles are the names by kind.
var documentFiles = map[string]string{
	signed.KindGateways: "gateways.signed",
	signed.KindPolicy:   "policy.signed",
	agent.KindNetworks:  "networks.json",
}

func (d documents) file(kind string) (string, error) {
	name, ok := documentFiles[kind]
	if !ok {
		return "", fmt.Errorf("no document of kind %q is kept", kind)
	}
	return filepath.Join(d.dir, name), nil
}

// Load implements agent.Documents.
func (d documents) Load(kind string) ([]byte, error) {
	path, err := d.file(kind)
	if err != nil {
		return nil, err
	}
	doc, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return doc, err
}

// Save implements agent.Documents.
func (d documents) Save(kind string, doc []byte) error {
	path, err := d.file(kind)
	if err != nil {
		return err
	}
	return writeFile(path, doc, 0o600)
}
