package table

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// customColumn is a column of a custom resource: a field of the object.
type customColumn struct {
	metav1.TableColumnDefinition
	path []string
}

// ageOfCustom is what a custom resource shows where nobody chose its columns.
var ageOfCustom = customColumn{
	metav1.TableColumnDefinition{Name: "Age", Type: "date", Description: ageColumn.Description},
	[]string{"metadata", "creationTimestamp"},
}

// customColumns are those of the custom resources that a node mirrors, as their
// definitions have them (internal/api/v1alpha1).
var customColumns = map[schema.GroupVersionKind][]customColumn{
	{Group: "edgewright.dev", Version: "v1alpha1", Kind: "NodePool"}: {
		{column("Type", "What sites the pool is of."), []string{"spec", "type"}},
		{number("Nodes", "How many nodes it has."), []string{"status", "nodes"}},
		{number("Ready", "How many of them are ready."), []string{"status", "readyNodes"}},
		{number("Cut", "How many are cut off."), []string{"status", "cutNodes"}},
		ageOfCustom,
	},
}

// customForms are made of customColumns, and otherForm for all other resources.
var (
	customForms = func() map[schema.GroupVersionKind]form {
		all := map[schema.GroupVersionKind]form{}
		for kind, fields := range customColumns {
			all[kind] = customForm(fields...)
		}
		return all
	}()
	otherForm = customForm(ageOfCustom)
)

// customForm is that of a custom resource with these columns.
func customForm(fields ...customColumn) form {
	columns := []metav1.TableColumnDefinition{nameColumn}
	for _, c := range fields {
		columns = append(columns, c.TableColumnDefinition)
	}
	return form{columns: columns, cells: func(o runtime.Object, ago since) ([]any, error) {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("a %T in a table of a custom resource", o)
		}
		cells := []any{u.GetName()}
		for _, c := range fields {
			cells = append(cells, c.cell(u, ago))
		}
		return cells, nil
	}}
}

// cell is the field's value; nil where the object has none, or of another type.
func (c customColumn) cell(u *unstructured.Unstructured, ago since) any {
	value, ok, err := unstructured.NestedFieldNoCopy(u.Object, c.path...)
	if err != nil || !ok {
		return nil
	}
	switch v := value.(type) {
	case int64:
		if c.Type == "integer" {
			return v
		}
	case string:
		switch c.Type {
		case "string":
			return v
		case "date":
			var t metav1.Time
			if err := t.UnmarshalQueryParameter(v); err != nil {
				return "<invalid>"
			}
			return ago(t)
		}
	}
	return nil
}

// number is a column of whole numbers.
func number(name, description string) metav1.TableColumnDefinition {
	c := column(name, description)
	c.Type = "integer"
	return c
}
