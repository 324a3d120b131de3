// Package acceptance runs the provider in process under Terraform's own test
// framework, against real clusters: what a plan shows, what an import finds,
// what drift looks like.
package acceptance
