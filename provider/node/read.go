package node

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func read(ctx context.Context, eng entity.Engine, state *model) (*engine.Node, error) {
	return entity.Nodes(eng).ReadNode(ctx, state.ClusterID.ValueString(), state.Name.ValueString())
}
