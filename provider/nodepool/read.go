package nodepool

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func read(ctx context.Context, eng entity.Engine, state *model) (*engine.Pool, error) {
	return entity.Pools(eng).ReadPool(ctx, state.ClusterID.ValueString(), state.Name.ValueString())
}
