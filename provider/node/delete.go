package node

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func remove(ctx context.Context, eng entity.Engine, state *model) error {
	return entity.Nodes(eng).DeleteNode(ctx, state.ClusterID.ValueString(), state.Name.ValueString())
}
