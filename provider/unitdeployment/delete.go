package unitdeployment

import (
	"context"

	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

func remove(ctx context.Context, eng entity.Engine, state *model) error {
	return entity.Units(eng).DeleteUnit(ctx, state.ClusterID.ValueString(), state.Namespace.ValueString(), state.Name.ValueString())
}
