package cluster

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func read(ctx context.Context, eng entity.Engine, state *model) (*engine.Cluster, error) {
	return entity.Clusters(eng).ReadCluster(ctx, state.ID.ValueString())
}
