package unitdeployment

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func update(ctx context.Context, eng entity.Engine, plan *model) (*engine.Unit, error) {
	spec, err := plan.spec(ctx)
	if err != nil {
		return nil, err
	}
	return entity.Units(eng).UpdateUnit(ctx, spec)
}
