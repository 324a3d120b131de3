package provider

import (
	"os"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// openEngine opens the real engine. It touches neither disk nor network: the
// engine does when a use case needs it.
func openEngine(s Settings) (Engine, error) {
	getenv := func(name string) string {
		switch name {
		case envComponentSource:
			return s.ComponentSource
		case envComponentMirror:
			return s.ComponentMirror
		case envComponentCache:
			return s.ComponentCache
		}
		return os.Getenv(name)
	}
	logger := NewLogger()
	components := component.DefaultOptions(getenv)
	components.Logger = logger
	return engine.New(engine.Options{
		StateDir:     s.StateDir,
		Clusters:     s.Clusters,
		Components:   components,
		Version:      s.Version,
		FieldManager: s.FieldManager,
		Logger:       logger,
	})
}
