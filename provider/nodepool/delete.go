package nodepool

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func remove(ctx context.Context, eng entity.Engine, state *model) error {
	return entity.Pools(eng).DeletePool(ctx, state.ClusterID.ValueString(), state.Name.ValueString())
}
