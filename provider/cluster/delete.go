package cluster

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func remove(ctx context.Context, eng entity.Engine, state *model) error {
	return entity.Clusters(eng).DeleteCluster(ctx, state.ID.ValueString())
}
