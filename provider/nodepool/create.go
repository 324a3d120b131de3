package nodepool

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func create(ctx context.Context, eng entity.Engine, plan *model) (*engine.Pool, error) {
	spec, err := plan.spec(ctx)
	if err != nil {
		return nil, err
	}
	return entity.Pools(eng).CreatePool(ctx, plan.ClusterID.ValueString(), plan.Name.ValueString(), spec)
}
