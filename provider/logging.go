package provider

import (
	"context"
	"log/slog"
	"slices"

	"github.com/hashicorp/terraform-plugin-log/tflog"
)

// logHandler passes what the engine logs to Terraform's provider log
// (TF_LOG_PROVIDER). The logger is in the context of each call, so a record
// without one is dropped by tflog.
type logHandler struct {
	prefix string // of a group, with its dot
	attrs  []slog.Attr
}

// Enabled implements slog.Handler; Terraform's own level decides.
func (h logHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	fields := map[string]any{}
	for _, a := range h.attrs {
		add(fields, "", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		add(fields, h.prefix, a)
		return true
	})
	switch {
	case r.Level >= slog.LevelError:
		tflog.Error(ctx, r.Message, fields)
	case r.Level >= slog.LevelWarn:
		tflog.Warn(ctx, r.Message, fields)
	case r.Level >= slog.LevelInfo:
		tflog.Info(ctx, r.Message, fields)
	default:
		tflog.Debug(ctx, r.Message, fields)
	}
	return nil
}

func add(fields map[string]any, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		if err, ok := v.Any().(error); ok {
			fields[prefix+a.Key] = err.Error()
			return
		}
		fields[prefix+a.Key] = v.Any()
		return
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, b := range v.Group() {
		add(fields, prefix, b)
	}
}

// WithAttrs implements slog.Handler.
func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		h.attrs = append(h.attrs, slog.Attr{Key: h.prefix + a.Key, Value: a.Value})
	}
	return h
}

// WithGroup implements slog.Handler.
func (h logHandler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.prefix += name + "."
	}
	return h
}

// NewLogger returns a logger that writes to Terraform's provider log.
func NewLogger() *slog.Logger { return slog.New(logHandler{}) }
