package cluster

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

// update finishes what is incomplete and starts what is stopped; nothing declared
// can be changed in place yet. The engine converges, whatever the cause.
func update(ctx context.Context, eng entity.Engine, plan *model) (*engine.Cluster, error) {
	spec, err := plan.spec(ctx)
	if err != nil {
		return nil, err
	}
	return entity.Clusters(eng).UpdateCluster(ctx, plan.ID.ValueString(), spec)
}
