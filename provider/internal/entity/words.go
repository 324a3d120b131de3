package entity

import "fmt"

// Words are what messages call the tool that a user runs. The same provider
// serves Terraform and, through Pulumi's bridge, `pulumi up`; advice that names
// the other one's commands is no advice.
type Words struct {
	Apply   string // the command that goes on with what is unfinished
	Destroy string
	// Replace tells how an object is replaced whose configuration now differs in
	// something that is fixed; it goes on from "to make a new one in place of this one, ".
	Replace string
	// Import tells how an object of a kind ("node_pool") that exists already is
	// taken over by its id. It is a sentence.
	Import func(kind, id string) string
}

// Terraform are the words for who runs terraform or tofu.
//
// Terraform plans a change with the provider before it looks at -replace, so
// -replace meets the same refusal while the configuration differs; a tainted
// object is planned as a new one.
func Terraform() Words {
	return Words{
		Apply:   "terraform apply",
		Destroy: "terraform destroy",
		Replace: "run `terraform taint <address>` and then `terraform apply`. (`-replace=<address>` does it only while nothing that is fixed differs.)",
		Import: func(_, id string) string {
			return "Import it: `terraform import <address> " + id + "`"
		},
	}
}

// Pulumi are the words for who runs pulumi. token turns the kind of an entity
// into the type that `pulumi import` is given.
//
// Pulumi does not ask the provider about a resource that it is told to replace,
// and then makes the new one first, unless the program says otherwise.
func Pulumi(token func(kind string) string) Words {
	return Words{
		Apply:   "pulumi up",
		Destroy: "pulumi destroy",
		Replace: "give it the resource option deleteBeforeReplace and run `pulumi up --replace <urn>`.",
		Import: func(kind, id string) string {
			return fmt.Sprintf("Import it with the id %s: `pulumi import %s <name> %s`", id, token(kind), id)
		},
	}
}
