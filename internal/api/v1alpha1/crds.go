package v1alpha1

import "embed"

// CRDs holds the generated CustomResourceDefinitions as YAML, one file a type.
//
//go:embed crds/*.yaml
var CRDs embed.FS
