// Package version is the version of the Pulumi plugin and of its SDKs.
package version

// Version is set by the linker (-X …/bridge/pkg/version.Version). It is semantic,
// without a leading v: the bridge refuses to start with anything else.
var Version = "0.0.1-dev"
