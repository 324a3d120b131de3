package node

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func create(ctx context.Context, eng entity.Engine, plan *model) (*engine.Node, error) {
	spec, err := plan.spec(ctx)
	if err != nil {
		return nil, err
	}
	return entity.Nodes(eng).CreateNode(ctx, spec)
}
