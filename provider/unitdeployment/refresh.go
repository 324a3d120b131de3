package unitdeployment

import (
	"cmp"
	"context"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	corev1 "k8s.io/api/core/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

// refresh writes what the engine knows of a unit deployment over m. What means
// the same to the cluster (an empty map and none) stays as m has it; quantities
// are compared by meaning where state is written.
func refresh(ctx context.Context, m *model, u *engine.Unit) diag.Diagnostics {
	r := specReader{ctx: ctx}
	m.ID = types.StringValue(u.ID)
	m.ClusterID = entity.SameCluster(m.ClusterID, u.ClusterID)
	m.Name = types.StringValue(u.Name)
	m.Namespace = types.StringValue(u.Namespace)
	m.Status = entity.Text(u.Status)

	template := templateModel{}
	if m.Template != nil {
		template = *m.Template
	}
	containers := make(map[string]containerModel, len(u.Spec.Template.Containers))
	for _, c := range u.Spec.Template.Containers {
		containers[c.Name] = r.container(template.Containers[c.Name], c)
	}
	m.Template = &templateModel{
		Labels:     entity.MapValue(ctx, template.Labels, u.Spec.Template.Labels, &r.diags),
		Containers: containers,
	}
	pools := make(map[string]poolModel, len(u.Spec.Pools))
	for _, p := range u.Spec.Pools {
		pools[p.Name] = r.pool(m.Pools[p.Name], p)
	}
	m.Pools = pools
	m.Service = service(u.Spec.Service)
	return r.diags
}

func service(s *v1alpha1.UnitService) *serviceModel {
	if s == nil {
		return nil
	}
	out := &serviceModel{
		Type:  types.StringValue(cmp.Or(string(s.Type), defaultType)),
		Ports: make(map[string]servicePortModel, len(s.Ports)),
	}
	for _, p := range s.Ports {
		out.Ports[p.Name] = servicePortModel{
			Port:       types.Int64Value(int64(p.Port)),
			TargetPort: entity.Text(p.TargetPort),
			Protocol:   types.StringValue(cmp.Or(string(p.Protocol), defaultProtocol)),
		}
	}
	return out
}

// specReader collects what goes wrong on the way.
type specReader struct {
	ctx   context.Context
	diags diag.Diagnostics
}

func (r *specReader) container(prior containerModel, c v1alpha1.UnitContainer) containerModel {
	out := containerModel{
		Image:     types.StringValue(c.Image),
		Command:   entity.ListValue(r.ctx, prior.Command, c.Command, &r.diags),
		Args:      entity.ListValue(r.ctx, prior.Args, c.Args, &r.diags),
		Env:       entity.MapValue(r.ctx, prior.Env, c.Env, &r.diags),
		Resources: resources(prior.Resources, c.Resources),
	}
	if prior.Ports != nil || len(c.Ports) > 0 {
		out.Ports = make(map[string]portModel, len(c.Ports))
	}
	for _, p := range c.Ports {
		out.Ports[p.Name] = portModel{
			Port:     types.Int64Value(int64(p.Port)),
			Protocol: types.StringValue(cmp.Or(string(p.Protocol), defaultProtocol)),
		}
	}
	return out
}

func (r *specReader) pool(prior poolModel, p v1alpha1.UnitPool) poolModel {
	out := poolModel{
		Replicas: types.Int64Value(defaultReplicas),
		Env:      entity.MapValue(r.ctx, prior.Env, p.Env, &r.diags),
	}
	if p.Replicas != nil {
		out.Replicas = types.Int64Value(int64(*p.Replicas))
	}
	if prior.Containers != nil || len(p.Containers) > 0 {
		out.Containers = make(map[string]overrideModel, len(p.Containers))
	}
	for _, c := range p.Containers {
		before := prior.Containers[c.Name]
		out.Containers[c.Name] = overrideModel{
			Image:     entity.Text(c.Image),
			Command:   entity.ListValue(r.ctx, before.Command, c.Command, &r.diags),
			Args:      entity.ListValue(r.ctx, before.Args, c.Args, &r.diags),
			Env:       entity.MapValue(r.ctx, before.Env, c.Env, &r.diags),
			Resources: resources(before.Resources, c.Resources),
		}
	}
	return out
}

func resources(prior *resourcesModel, u *v1alpha1.UnitResources) *resourcesModel {
	if u == nil || len(u.Requests)+len(u.Limits) == 0 {
		if prior != nil && len(prior.Requests)+len(prior.Limits) == 0 {
			return prior
		}
		return nil
	}
	if prior == nil {
		prior = &resourcesModel{}
	}
	return &resourcesModel{
		Requests: quantities(prior.Requests, u.Requests),
		Limits:   quantities(prior.Limits, u.Limits),
	}
}

func quantities(prior map[string]spelling.Quantity, list corev1.ResourceList) map[string]spelling.Quantity {
	if prior == nil && len(list) == 0 {
		return nil
	}
	out := make(map[string]spelling.Quantity, len(list))
	for name, q := range list {
		out[string(name)] = spelling.Of[spelling.QuantityKind](q.String())
	}
	return out
}
