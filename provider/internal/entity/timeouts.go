package entity

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
)

// Timeouts are the bounds of an entity's verbs where the user sets none.
type Timeouts struct{ Create, Read, Update, Delete time.Duration }

// Attribute is the `timeouts` attribute, with these defaults in its text.
func (t Timeouts) Attribute(ctx context.Context) schema.Attribute {
	text := func(verb string, d time.Duration, more string) string {
		return fmt.Sprintf("How long %s may take, like `90s` or `1h30m`.%s Default `%s`.", verb, more, shortDuration(d))
	}
	a, ok := timeouts.Attributes(ctx, timeouts.Opts{
		Create: true, Read: true, Update: true, Delete: true,
		CreateDescription: text("creating", t.Create, " What is unfinished when it ends is finished by the next apply."),
		ReadDescription:   text("reading", t.Read, ""),
		UpdateDescription: text("updating", t.Update, " What is unfinished when it ends is finished by the next apply."),
		DeleteDescription: text("deleting", t.Delete, " It must be in state before the destroy that it bounds."),
	}).(schema.SingleNestedAttribute)
	if ok {
		a.MarkdownDescription = "How long each operation may take."
	}
	return a
}

// shortDuration writes 45m rather than 45m0s.
func shortDuration(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d%time.Second == 0:
		return fmt.Sprintf("%ds", d/time.Second)
	default:
		return d.String()
	}
}
