package unitdeployment

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func read(ctx context.Context, eng entity.Engine, state *model) (*engine.Unit, error) {
	return entity.Units(eng).ReadUnit(ctx, state.ClusterID.ValueString(), state.Namespace.ValueString(), state.Name.ValueString())
}
