package bridge

import (
	_ "embed" // the bridge's metadata
	"fmt"
	"strings"

	pfbridge "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/pf/tfbridge"
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge/tokens"

	"github.com/edgewright/terraform-provider-edge/bridge/pkg/version"
	"github.com/edgewright/terraform-provider-edge/provider"
)

const (
	pkg    = "edge"
	module = "index"
	prefix = "edge_"

	repository = "https://github.com/edgewright/terraform-provider-edge"
	// downloadURL is where the CLI looks for the plugin: releases of the repository.
	downloadURL = "github://api.github.com/edgewright/terraform-provider-edge"
)

//go:embed cmd/pulumi-resource-edge/bridge-metadata.json
var metadata []byte

// Provider describes the Pulumi package: the Terraform provider it is made from
// and everything that is called or done otherwise than the bridge would.
func Provider() tfbridge.ProviderInfo { return providerInfo() }

// providerInfo is Provider, with options for the provider that it is made from.
func providerInfo(opts ...provider.Option) tfbridge.ProviderInfo {
	opts = append([]provider.Option{provider.ForPulumi(token)}, opts...)
	license := tfbridge.Apache20LicenseType
	info := tfbridge.ProviderInfo{
		P:                 pfbridge.ShimProvider(provider.New(version.Version, opts...)()),
		Name:              pkg,
		Version:           version.Version,
		DisplayName:       "Edge",
		Publisher:         "edgewright",
		Description:       "Kubernetes clusters whose nodes are at the edge: behind NAT, on links that fail, on any hardware.",
		Keywords:          []string{"pulumi", "edge", "kubernetes", "category/infrastructure"},
		License:           "Apache-2.0",
		TFProviderLicense: &license,
		Homepage:          repository,
		Repository:        repository,
		GitHubOrg:         "edgewright",
		PluginDownloadURL: downloadURL,
		// Documentation comes from docs/ of this repository.
		UpstreamRepoPath: "..",
		MetadataInfo:     tfbridge.NewProviderMetadata(metadata),

		EnableAccuratePFBridgePreview: true,
		NoDanglingReferences:          true,

		Config: configFields(),
		Resources: map[string]*tfbridge.ResourceInfo{
			"edge_unit_deployment": {Fields: unitDeploymentFields()},
		},
		SchemaPostProcessor: amend,

		JavaScript: &tfbridge.JavaScriptInfo{
			PackageName:          "@edgewright/edge",
			DevDependencies:      map[string]string{"@types/node": "^20", "typescript": "^5"},
			RespectSchemaVersion: true,
		},
		Golang: &tfbridge.GolangInfo{
			ImportBasePath:                 "github.com/edgewright/terraform-provider-edge/bridge/sdk/go/edge",
			RootPackageName:                pkg,
			GenerateResourceContainerTypes: false,
			RespectSchemaVersion:           true,
		},
	}
	info.MustComputeTokens(tokens.SingleModule(prefix, module, tokens.MakeStandard(pkg)))
	info.MustApplyAutoAliases()
	for _, r := range info.Resources {
		// Names are the user's, so that an old and a new object cannot be there at once.
		r.DeleteBeforeReplace = true
	}
	return info
}

// token is the type token of a resource: edge_node_pool is edge:index/nodePool:NodePool.
func token(resource string) string {
	name := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(resource, prefix), "_") {
		name += strings.ToUpper(part[:1]) + part[1:]
	}
	return fmt.Sprintf("%s:%s/%s%s:%s", pkg, module, strings.ToLower(name[:1]), name[1:], name)
}
