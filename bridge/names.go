package bridge

import (
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
)

// What the SDKs call things where the bridge's own choice is wrong: it gives every
// list a plural (`commands` for the words of one command), and names the type of a
// map's element after the map (UnitDeploymentPools for one pool).

func unitDeploymentFields() map[string]*tfbridge.SchemaInfo {
	words := &tfbridge.SchemaInfo{Name: "command"}
	return map[string]*tfbridge.SchemaInfo{
		"template": object("UnitDeploymentTemplate", fields{
			"containers": mapOf(object("UnitDeploymentContainer", fields{
				"command":   words,
				"ports":     mapOf(object("UnitDeploymentContainerPort", nil)),
				"resources": object("UnitDeploymentContainerResources", nil),
			})),
		}),
		"pools": mapOf(object("UnitDeploymentPool", fields{
			"containers": mapOf(object("UnitDeploymentPoolContainer", fields{
				"command":   words,
				"resources": object("UnitDeploymentPoolContainerResources", nil),
			})),
		})),
		"service": object("UnitDeploymentService", fields{
			"ports": mapOf(object("UnitDeploymentServicePort", nil)),
		}),
	}
}

func configFields() map[string]*tfbridge.SchemaInfo {
	clusters := mapOf(object("ProviderCluster", nil))
	// An access may hold a token. Pulumi keeps a whole property secret or none of it.
	clusters.Secret = tfbridge.True()
	return map[string]*tfbridge.SchemaInfo{"clusters": clusters}
}

type fields = map[string]*tfbridge.SchemaInfo

// object describes a nested object. Its fields stand where the generator looks for
// them; see whenServed.
func object(typeName string, f fields) *tfbridge.SchemaInfo {
	return &tfbridge.SchemaInfo{Elem: &tfbridge.SchemaInfo{TypeName: &typeName, Fields: f}}
}

// mapOf describes a map of such objects.
func mapOf(element *tfbridge.SchemaInfo) *tfbridge.SchemaInfo {
	return &tfbridge.SchemaInfo{Elem: element}
}

// whenServed puts the fields of nested objects also where the plugin looks for them
// when it runs, which is one step higher than where the generator does, and where
// the generator refuses them.
func whenServed(f fields) {
	for _, info := range f {
		for ; info != nil; info = info.Elem {
			if info.Elem != nil && info.Elem.TypeName != nil {
				info.Fields = info.Elem.Fields
			}
			whenServed(info.Fields)
		}
	}
}
