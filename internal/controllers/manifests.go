package controllers

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

//go:embed manifests/*.yaml
var manifestFiles embed.FS

// HubRole is the ClusterRole that the node controller binds to each node's hub.
const HubRole = "edge-hub"

// Manifests returns what a cluster needs before nodes can join: the namespace
// edge-system, the custom resource definitions, RBAC of the hub, the gateway
// and the controllers, and the admission policies for nodes.
func Manifests() ([]client.Object, error) {
	var objects []client.Object
	for _, source := range []fs.FS{v1alpha1.CRDs, manifestFiles} {
		err := fs.WalkDir(source, ".", func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			text, err := fs.ReadFile(source, path)
			if err != nil {
				return err
			}
			parsed, err := parseManifest(text)
			if err != nil {
				return fmt.Errorf("manifest %s: %w", path, err)
			}
			objects = append(objects, parsed...)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
	}
	return objects, nil
}

func parseManifest(text []byte) ([]client.Object, error) {
	var objects []client.Object
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}
