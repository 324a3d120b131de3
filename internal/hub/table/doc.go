// Package table says what of an object stands in the row of a Table
// (meta.k8s.io/v1), the form in which kubectl lists for a person: which columns a
// kind has, and what is in its cells now. It makes rows of the kinds that a node
// mirrors, keeps nothing, and knows neither requests nor encodings.
//
// Columns and cells are those of an apiserver (k8s.io/kubernetes,
// pkg/printers/internalversion/printers.go; for custom resources
// k8s.io/apiextensions-apiserver, pkg/registry/customresource/tableconvertor), which
// the differential tests hold it to. Only the descriptions of columns, which kubectl
// does not print, are our own.
//
// # Files
//
//	table.go     Printer: columns, rows, tables
//	pods.go      what a pod is at, in one word
//	nodes.go     nodes
//	services.go  services and their slices
//	plain.go     kinds of few columns
//	custom.go    custom resources
package table
