package host

import (
	"fmt"
	"strings"
)

// Problem is one reason why a machine cannot carry a local node.
type Problem struct {
	// What is missing or wrong.
	What string `json:"what"`
	// Fix is a sentence with the package and the command to type.
	Fix string `json:"fix"`
}

// Error implements error.
func (p Problem) Error() string { return p.What + ". " + p.Fix }

// PreflightError is every problem of a machine at once.
type PreflightError struct{ Problems []Problem }

// Error implements error.
func (e *PreflightError) Error() string {
	if len(e.Problems) == 1 {
		return "this machine cannot run a local node: " + e.Problems[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "this machine cannot run a local node, for %d reasons:", len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n  - " + p.Error())
	}
	return b.String()
}
