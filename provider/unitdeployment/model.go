package unitdeployment

import (
	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

// model is edge_unit_deployment in plan and state. It is only decoded when
// everything a user sets is known, so nested things are plain Go; a configuration,
// where anything may be unknown, is looked at by validate instead.
type model struct {
	ID        types.String         `tfsdk:"id"`
	ClusterID types.String         `tfsdk:"cluster_id"`
	Name      types.String         `tfsdk:"name"`
	Namespace types.String         `tfsdk:"namespace"`
	Template  *templateModel       `tfsdk:"template"`
	Pools     map[string]poolModel `tfsdk:"pools"`
	Service   *serviceModel        `tfsdk:"service"`
	Wait      *waitModel           `tfsdk:"wait"`
	Timeouts  timeouts.Value       `tfsdk:"timeouts"`
	Status    types.String         `tfsdk:"status"`
}

type templateModel struct {
	Labels     types.Map                 `tfsdk:"labels"`
	Containers map[string]containerModel `tfsdk:"containers"`
}

type containerModel struct {
	Image     types.String         `tfsdk:"image"`
	Command   types.List           `tfsdk:"command"`
	Args      types.List           `tfsdk:"args"`
	Env       types.Map            `tfsdk:"env"`
	Ports     map[string]portModel `tfsdk:"ports"`
	Resources *resourcesModel      `tfsdk:"resources"`
}

type portModel struct {
	Port     types.Int64  `tfsdk:"port"`
	Protocol types.String `tfsdk:"protocol"`
}

type resourcesModel struct {
	Requests map[string]spelling.Quantity `tfsdk:"requests"`
	Limits   map[string]spelling.Quantity `tfsdk:"limits"`
}

type poolModel struct {
	Replicas   types.Int64              `tfsdk:"replicas"`
	Env        types.Map                `tfsdk:"env"`
	Containers map[string]overrideModel `tfsdk:"containers"`
}

type overrideModel struct {
	Image     types.String    `tfsdk:"image"`
	Command   types.List      `tfsdk:"command"`
	Args      types.List      `tfsdk:"args"`
	Env       types.Map       `tfsdk:"env"`
	Resources *resourcesModel `tfsdk:"resources"`
}

type serviceModel struct {
	Type  types.String                `tfsdk:"type"`
	Ports map[string]servicePortModel `tfsdk:"ports"`
}

type servicePortModel struct {
	Port       types.Int64  `tfsdk:"port"`
	TargetPort types.String `tfsdk:"target_port"`
	Protocol   types.String `tfsdk:"protocol"`
}

type waitModel struct {
	Rollout types.Bool `tfsdk:"rollout"`
}
