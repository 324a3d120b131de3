package entity

import (
	"fmt"
	"strings"

	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// maxImportID keeps a mistaken paste out of error messages.
const maxImportID = 1024

// ParseChildID splits the import id of something inside a cluster,
// "<cluster id>/<name>…", into the cluster's id and as many names as asked for.
// Every name is a DNS label.
func ParseChildID(id string, names ...string) (clusterID string, values []string, err error) {
	want := "<cluster id>/<" + strings.Join(names, ">/<") + ">"
	if len(id) > maxImportID {
		return "", nil, fmt.Errorf("an import id looks like %s; this one is %d characters long", want, len(id))
	}
	parts := strings.Split(id, "/")
	if len(parts) != 2+len(names) {
		return "", nil, fmt.Errorf("an import id looks like %s, where a cluster id is like local/quickstart-1f2e3d4c; got %q", want, id)
	}
	clusterID, values = parts[0]+"/"+parts[1], parts[2:]
	if err := validators.CheckClusterID(clusterID); err != nil {
		return "", nil, fmt.Errorf("an import id looks like %s; the cluster id is %w", want, err)
	}
	for i, v := range values {
		if err := validators.CheckLabel(v, 63); err != nil {
			return "", nil, fmt.Errorf("an import id looks like %s; the %s is %w", want, names[i], err)
		}
	}
	return clusterID, values, nil
}
