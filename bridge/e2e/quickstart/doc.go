// Package quickstart brings examples/pulumi up for real, with Pulumi's own CLI and
// a stack in a directory: the program in Go and the one in TypeScript inside their
// own process, through the Automation API, the one in YAML through its language
// host. What they make in Kubernetes is compared with what Terraform makes from
// examples/quickstart.
//
// The test lives in this module because the root's knows nothing of Pulumi.
package quickstart
