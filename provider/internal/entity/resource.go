package entity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// Kind is everything that differs between entities. M is the model of the
// schema, O what the engine returns.
type Kind[M, O any] struct {
	// Type is the resource type without the provider's prefix: "node_pool".
	Type string
	// Noun names the entity in messages: "node pool".
	Noun string
	// Schema of the resource. It has `status` and `timeouts`.
	Schema func(ctx context.Context) schema.Schema
	// Plan says how changes are planned.
	Plan PlanRules
	// Defaults are the timeouts where the user sets none.
	Defaults Timeouts

	// Check, where set, is asked in a plan that will make, finish or start an
	// object whether this machine lets it; parts of the model may be unknown.
	Check func(ctx context.Context, eng Engine, plan *M) error

	// Timeouts of a model.
	Timeouts func(*M) timeouts.Value
	// ClusterID of a model, for the one warning a cluster that cannot be reached gets.
	ClusterID func(*M) string
	// Name of a model's object as messages call it.
	Name func(*M) string

	// The verbs. Create, Read and Update return a non-nil object beside an error
	// once something durable exists.
	Create func(ctx context.Context, eng Engine, plan *M) (*O, error)
	Read   func(ctx context.Context, eng Engine, state *M) (*O, error)
	Update func(ctx context.Context, eng Engine, plan *M) (*O, error)
	Delete func(ctx context.Context, eng Engine, state *M) error

	// Refresh writes what the engine returned over a model that holds the plan or
	// the prior state.
	Refresh func(ctx context.Context, m *M, obj *O) diag.Diagnostics
	// Import returns the attributes that an import id stands for.
	Import func(id string) (map[string]any, error)
}

// Resource is a resource of one kind.
type Resource[M, O any] struct {
	kind Kind[M, O]
	conn *Connection
}

// New returns a resource of that kind.
func New[M, O any](kind Kind[M, O]) *Resource[M, O] { return &Resource[M, O]{kind: kind} }

// Metadata implements resource.Resource.
func (r *Resource[M, O]) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_" + r.kind.Type
}

// Schema implements resource.Resource.
func (r *Resource[M, O]) Schema(ctx context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = r.kind.Schema(ctx)
}

// Configure implements resource.ResourceWithConfigure.
func (r *Resource[M, O]) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	r.conn = FromProviderData(req.ProviderData, &resp.Diagnostics)
}

// ModifyPlan implements resource.ResourceWithModifyPlan.
func (r *Resource[M, O]) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	r.kind.Plan.apply(ctx, r.kind.Noun, r.words(), req, resp)
	if r.kind.Check != nil && !resp.Diagnostics.HasError() {
		r.check(ctx, req, resp)
	}
}

// check asks the kind's Check where the plan makes, finishes or starts the object.
func (r *Resource[M, O]) check(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if resp.Plan.Raw.IsNull() || r.conn == nil {
		return
	}
	if !req.State.Raw.IsNull() && len(resp.RequiresReplace) == 0 {
		if status, _ := statusOf(ctx, req.State); status == engine.StatusReady {
			return
		}
	}
	var m M
	if resp.Diagnostics.Append(resp.Plan.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	eng, err := r.engine()
	if err != nil {
		return // the provider block waits for another resource: apply asks again
	}
	if err := r.kind.Check(ctx, eng, &m); err != nil {
		resp.Diagnostics.Append(r.diagnose(ctx, resp.Plan.Schema.Type(), err, "plan "+r.kind.Noun, r.kind.Name(&m)))
	}
}

// ImportState implements resource.ResourceWithImportState.
func (r *Resource[M, O]) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	attributes, err := r.kind.Import(req.ID)
	if err != nil {
		resp.Diagnostics.AddError("Not the import id of a "+r.kind.Noun, sentence(err.Error()))
		return
	}
	for name, value := range attributes {
		resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root(name), value)...)
	}
}

// Create implements resource.Resource.
func (r *Resource[M, O]) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var m M
	if resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	limit, diags := r.kind.Timeouts(&m).Create(ctx, r.kind.Defaults.Create)
	if resp.Diagnostics.Append(diags...); diags.HasError() {
		return
	}
	obj, err := r.act(ctx, limit, &m, r.kind.Create)
	w := written{doing: "create", limit: limit, planned: true}
	resp.Diagnostics.Append(r.write(ctx, w, req.Plan, &resp.State, &m, obj, err)...)
}

// Update implements resource.Resource.
func (r *Resource[M, O]) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var m M
	if resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	limit, diags := r.kind.Timeouts(&m).Update(ctx, r.kind.Defaults.Update)
	if resp.Diagnostics.Append(diags...); diags.HasError() {
		return
	}
	obj, err := r.act(ctx, limit, &m, r.kind.Update)
	w := written{doing: "update", limit: limit}
	resp.Diagnostics.Append(r.write(ctx, w, req.Plan, &resp.State, &m, obj, err)...)
}

// act runs one verb within its deadline.
func (r *Resource[M, O]) act(ctx context.Context, limit time.Duration, m *M, verb func(context.Context, Engine, *M) (*O, error)) (*O, error) {
	eng, err := r.engine()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return verb(ctx, eng, m)
}

func (r *Resource[M, O]) engine() (Engine, error) {
	if r.conn == nil {
		return nil, errors.New("the provider is not configured")
	}
	return r.conn.Engine()
}

// words are those of the tool in use.
func (r *Resource[M, O]) words() Words {
	if r.conn == nil {
		return Terraform()
	}
	return r.conn.words
}

// diagnose is Diagnose, with advice in the words of the tool in use.
func (r *Resource[M, O]) diagnose(ctx context.Context, schema attr.Type, err error, doing, object string) diag.Diagnostic {
	var e *engine.Error
	if errors.As(err, &e) && e.ImportID != "" {
		advised := *e
		advised.Next = r.words().Import(r.kind.Type, e.ImportID)
		err = &advised
	}
	return Diagnose(ctx, schema, err, doing, object)
}

// written says what a create or update was.
type written struct {
	doing string
	limit time.Duration
	// planned: a failure leaves the planned values in state, because there is no
	// earlier state that the object could still be in.
	planned bool
}

// write puts the outcome of a create or update into state: see the package's
// drawing.
func (r *Resource[M, O]) write(ctx context.Context, w written, plan tfsdk.Plan, state *tfsdk.State, m *M, obj *O, err error) diag.Diagnostics {
	var diags diag.Diagnostics
	name := r.kind.Name(m)
	if obj == nil {
		if err == nil {
			err = errors.New("the engine returned nothing; this is a bug in the provider: please report it")
		}
		// state keeps what it held: nothing for a create, the prior state for an update.
		diags.Append(r.diagnose(ctx, plan.Schema.Type(), err, w.doing+" "+r.kind.Noun, name))
		return diags
	}
	unfinished := isUnfinished(err)
	if diags.Append(r.kind.Refresh(ctx, m, obj)...); diags.HasError() {
		return diags
	}
	got := tfsdk.State(plan)
	if diags.Append(got.Set(ctx, m)...); diags.HasError() {
		return diags
	}
	if err == nil || unfinished || w.planned {
		state.Raw = asPlanned(plan.Raw, got.Raw)
	} else {
		state.Raw = nothingUnknown(got.Raw)
	}
	switch {
	case err == nil:
	case unfinished:
		diags.AddWarning(
			fmt.Sprintf("The %s %s is not finished", r.kind.Noun, name),
			unfinishedDetail(err, w, r.words().Apply))
	default:
		diags.Append(r.diagnose(ctx, plan.Schema.Type(), err, w.doing+" "+r.kind.Noun, name))
	}
	return diags
}

// isUnfinished says whether the work behind err can simply be taken up again:
// the engine says so, or the caller's own end (Ctrl-C, the deadline) came first.
func isUnfinished(err error) bool {
	if err == nil {
		return false
	}
	return engine.ClassOf(err) == engine.Unfinished || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func unfinishedDetail(err error, w written, apply string) string {
	var e *engine.Error
	cause, next := err, ""
	if errors.As(err, &e) {
		cause, next = e.Err, e.Next
	}
	detail := sentence(errorText(cause))
	if errors.Is(err, context.DeadlineExceeded) {
		detail += fmt.Sprintf(" It was given %s (timeouts.%s).", shortDuration(w.limit), w.doing)
	}
	detail += "\n\nWhat exists is in state. The next " + apply + " finishes it in place."
	if next != "" {
		detail += "\n\n" + sentence(next)
	}
	return detail
}

// Read implements resource.Resource.
func (r *Resource[M, O]) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var m M
	if resp.Diagnostics.Append(req.State.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	limit, diags := r.kind.Timeouts(&m).Read(ctx, r.kind.Defaults.Read)
	if resp.Diagnostics.Append(diags...); diags.HasError() {
		return
	}
	obj, err := r.act(ctx, limit, &m, r.kind.Read)
	switch class := engine.ClassOf(err); {
	case err == nil && obj != nil:
		if resp.Diagnostics.Append(r.kind.Refresh(ctx, &m, obj)...); resp.Diagnostics.HasError() {
			return
		}
		resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
	case err == nil:
		resp.Diagnostics.Append(r.diagnose(ctx, nil, errors.New("the engine returned nothing; this is a bug in the provider: please report it"), "read "+r.kind.Noun, r.kind.Name(&m)))
	case class == engine.NotFound:
		resp.State.RemoveResource(ctx)
	case (class == engine.Unreachable || errors.Is(err, context.DeadlineExceeded)) && !importing(ctx, req.State):
		if r.conn.firstWarning(r.kind.ClusterID(&m)) {
			resp.Diagnostics.Append(unreachable(r.kind.ClusterID(&m), err))
		}
		if obj != nil {
			resp.Diagnostics.Append(r.keepStatus(ctx, &resp.State, &m, obj)...)
		}
	default:
		resp.Diagnostics.Append(r.diagnose(ctx, nil, err, "read "+r.kind.Noun, r.kind.Name(&m)))
	}
}

// keepStatus writes into a kept state that the object is known not to be ready,
// although its cluster cannot be asked: a local node whose daemon is down reads
// "stopped", and the plan that starts its cluster starts it too.
func (r *Resource[M, O]) keepStatus(ctx context.Context, state *tfsdk.State, m *M, obj *O) diag.Diagnostics {
	diags := r.kind.Refresh(ctx, m, obj)
	if diags.HasError() {
		return diags
	}
	got := tfsdk.State{Schema: state.Schema, Raw: state.Raw}
	diags.Append(got.Set(ctx, m)...)
	status, d := statusOf(ctx, got)
	if diags.Append(d...); diags.HasError() || status == "" || status == engine.StatusReady {
		return diags
	}
	diags.Append(state.SetAttribute(ctx, path.Root(statusAttribute), status)...)
	return diags
}

// importing says whether state is what an import id was turned into: then there
// is no earlier state that could be kept. Every state that a create, update or
// read wrote has a status.
func importing(ctx context.Context, state tfsdk.State) bool {
	status, _ := statusOf(ctx, state)
	return status == ""
}

func unreachable(clusterID string, err error) diag.Diagnostic {
	var e *engine.Error
	cause, next := err, ""
	if errors.As(err, &e) {
		cause, next = e.Err, e.Next
	}
	summary := "Cannot reach cluster " + clusterID
	detail := sentence(errorText(cause)) + "\n\nIts resources are shown as they were last known, and nothing is planned from their absence. This warning is given once."
	if next != "" {
		detail += "\n\n" + sentence(next)
	}
	return diag.NewWarningDiagnostic(summary, detail)
}

// Delete implements resource.Resource.
func (r *Resource[M, O]) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var m M
	if resp.Diagnostics.Append(req.State.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	limit, diags := r.kind.Timeouts(&m).Delete(ctx, r.kind.Defaults.Delete)
	if resp.Diagnostics.Append(diags...); diags.HasError() {
		return
	}
	_, err := r.act(ctx, limit, &m, func(ctx context.Context, eng Engine, m *M) (*O, error) {
		return nil, r.kind.Delete(ctx, eng, m)
	})
	switch {
	case err == nil, engine.ClassOf(err) == engine.NotFound:
		// the framework removes the resource from state
	case isUnfinished(err):
		resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root(statusAttribute), engine.StatusDestroying)...)
		d := r.diagnose(ctx, nil, err, "delete "+r.kind.Noun, r.kind.Name(&m))
		detail := d.Detail()
		if errors.Is(err, context.DeadlineExceeded) {
			detail += fmt.Sprintf("\n\nIt was given %s (timeouts.delete).", shortDuration(limit))
		}
		resp.Diagnostics.AddError(d.Summary(), detail+"\n\nIt stays in state. The next "+r.words().Destroy+" goes on where this one stopped.")
	default:
		resp.Diagnostics.Append(r.diagnose(ctx, nil, err, "delete "+r.kind.Noun, r.kind.Name(&m)))
	}
}
