package entity

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// Diagnose turns an error of the engine into a diagnostic: what could not be
// done, why, what to do next and, where the engine names a field, the attribute
// it belongs to. doing and object ("create cluster", its name) serve errors that
// do not say it themselves. schema may be nil.
func Diagnose(ctx context.Context, schema attr.Type, err error, doing, object string) diag.Diagnostic {
	summary, detail, field := "Cannot "+doing+" "+object, err.Error(), ""
	var e *engine.Error
	if errors.As(err, &e) {
		summary, detail, field = "Cannot "+strings.TrimSpace(e.Op+" "+e.Object), sentence(errorText(e.Err)), e.Field
		if e.Next != "" {
			detail += "\n\n" + sentence(e.Next)
		}
	}
	if field == "" {
		return diag.NewErrorDiagnostic(summary, detail)
	}
	// Terraform points at a nested attribute's resource only, so the text names it.
	if strings.Contains(field, ".") {
		detail += fmt.Sprintf("\n\nThe attribute is %s.", field)
	}
	if p, ok := attributePath(ctx, schema, field); ok {
		return diag.NewAttributeErrorDiagnostic(p, summary, detail)
	}
	return diag.NewErrorDiagnostic(summary, detail)
}

func errorText(err error) string {
	if err == nil {
		return "no cause is known"
	}
	return err.Error()
}

// sentence begins with a capital letter, unless the text begins with a name, and
// ends with a full stop. A long text with lines of its own is left alone.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" || strings.Contains(s, "\n") {
		return s
	}
	if !strings.ContainsAny(s[len(s)-1:], ".!?`") {
		s += "."
	}
	return s
}

// attributePath turns the engine's dotted field ("pools.berlin.replicas") into a
// path of the schema: what is a step into an object, a map or a list only the
// schema knows. Map keys that hold dots are found by the longest match last: a
// map key takes one segment, so such a field is reported without a path.
func attributePath(ctx context.Context, schema attr.Type, field string) (path.Path, bool) {
	if schema == nil || len(field) > 1024 {
		return path.Empty(), false
	}
	p, at := path.Empty(), schema
	for step := range strings.SplitSeq(field, ".") {
		switch t := at.(type) {
		case attr.TypeWithAttributeTypes:
			next, ok := t.AttributeTypes()[step]
			if !ok {
				return path.Empty(), false
			}
			p, at = p.AtName(step), next
		case attr.TypeWithElementType:
			next := t.ElementType()
			if i, err := strconv.Atoi(step); err == nil && i >= 0 && isList(ctx, at) {
				p, at = p.AtListIndex(i), next
			} else if isMap(ctx, at) {
				p, at = p.AtMapKey(step), next
			} else {
				return p, true // an element of a set has no stable path: name the set
			}
		default:
			return path.Empty(), false
		}
	}
	return p, true
}
