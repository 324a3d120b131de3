package unitdeployment

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

// spec is what the engine is asked for. Maps become lists in the order of their
// names, so that one configuration is always one object.
func (m *model) spec(ctx context.Context) (engine.UnitSpec, error) {
	s := specWriter{ctx: ctx}
	spec := engine.UnitSpec{
		ClusterID:   m.ClusterID.ValueString(),
		Namespace:   m.Namespace.ValueString(),
		Name:        m.Name.ValueString(),
		WaitRollout: m.Wait == nil || m.Wait.Rollout.ValueBool(),
	}
	spec.Spec.Template.Labels = entity.StringMap(ctx, m.Template.Labels, &s.diags)
	for _, name := range names(m.Template.Containers) {
		spec.Spec.Template.Containers = append(spec.Spec.Template.Containers, s.container(name, m.Template.Containers[name]))
	}
	for _, name := range names(m.Pools) {
		spec.Spec.Pools = append(spec.Spec.Pools, s.pool(name, m.Pools[name]))
	}
	if m.Service != nil {
		spec.Spec.Service = &v1alpha1.UnitService{Type: corev1.ServiceType(m.Service.Type.ValueString())}
		for _, name := range names(m.Service.Ports) {
			p := m.Service.Ports[name]
			spec.Spec.Service.Ports = append(spec.Spec.Service.Ports, v1alpha1.UnitServicePort{
				Name: name, Port: int32(p.Port.ValueInt64()),
				TargetPort: p.TargetPort.ValueString(), Protocol: corev1.Protocol(p.Protocol.ValueString()),
			})
		}
	}
	return spec, entity.AsError(s.diags)
}

func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// specWriter collects what goes wrong on the way.
type specWriter struct {
	ctx   context.Context
	diags diag.Diagnostics
}

func (s *specWriter) container(name string, c containerModel) v1alpha1.UnitContainer {
	out := v1alpha1.UnitContainer{
		Name:      name,
		Image:     c.Image.ValueString(),
		Command:   entity.StringList(s.ctx, c.Command, &s.diags),
		Args:      entity.StringList(s.ctx, c.Args, &s.diags),
		Env:       entity.StringMap(s.ctx, c.Env, &s.diags),
		Resources: s.resources(c.Resources),
	}
	for _, port := range names(c.Ports) {
		p := c.Ports[port]
		out.Ports = append(out.Ports, v1alpha1.UnitPort{
			Name: port, Port: int32(p.Port.ValueInt64()), Protocol: corev1.Protocol(p.Protocol.ValueString()),
		})
	}
	return out
}

func (s *specWriter) pool(name string, p poolModel) v1alpha1.UnitPool {
	replicas := int32(p.Replicas.ValueInt64())
	out := v1alpha1.UnitPool{Name: name, Replicas: &replicas, Env: entity.StringMap(s.ctx, p.Env, &s.diags)}
	for _, container := range names(p.Containers) {
		c := p.Containers[container]
		out.Containers = append(out.Containers, v1alpha1.ContainerOverride{
			Name:      container,
			Image:     c.Image.ValueString(),
			Command:   entity.StringList(s.ctx, c.Command, &s.diags),
			Args:      entity.StringList(s.ctx, c.Args, &s.diags),
			Env:       entity.StringMap(s.ctx, c.Env, &s.diags),
			Resources: s.resources(c.Resources),
		})
	}
	return out
}

func (s *specWriter) resources(r *resourcesModel) *v1alpha1.UnitResources {
	if r == nil || len(r.Requests)+len(r.Limits) == 0 {
		return nil
	}
	return &v1alpha1.UnitResources{Requests: s.quantities(r.Requests), Limits: s.quantities(r.Limits)}
}

func (s *specWriter) quantities(m map[string]spelling.Quantity) corev1.ResourceList {
	if len(m) == 0 {
		return nil
	}
	list := corev1.ResourceList{}
	for name, v := range m {
		q, err := resource.ParseQuantity(v.ValueString())
		if err != nil {
			s.diags.AddError("Not a quantity", fmt.Sprintf("%s of %s: %v", v.ValueString(), name, err))
			continue
		}
		list[corev1.ResourceName(name)] = q
	}
	return list
}
