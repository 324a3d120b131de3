// Package bridge is the Pulumi face of the engine: the Terraform provider of
// package provider, translated by Pulumi's bridge, with the names, the advice and
// the manners that Pulumi's users expect. It is a module of its own, so that what
// Pulumi needs reaches neither the plugin of Terraform nor the daemons of whoever
// uses that. It knows nothing about clusters.
//
//	pulumi up ── gRPC ─▶ pulumi-resource-edge
//	                       stoppableServer   ends what runs on Ctrl-C
//	                         bridge            properties ◀─▶ attributes
//	                           provider          the same resources as Terraform's
//	                             engine
//
// From the schema (cmd/pulumi-tfgen-edge writes it) come the SDKs in sdk/
// (cmd/gensdk). All three are committed; make generate makes them anew.
package bridge
