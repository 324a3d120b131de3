//go:build linux

package controlplane

import (
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
)

// sessions passes on which nodes hold a tunnel session, from the gateway to the
// controllers. Subscribe is the notifier's.
type sessions struct {
	*controllers.Notifier

	mu        sync.Mutex // guards connected
	connected map[string]bool
}

var _ controllers.Sessions = (*sessions)(nil)

func newSessions() *sessions {
	return &sessions{Notifier: controllers.NewNotifier(), connected: map[string]bool{}}
}

// set is the gateway's OnSession.
func (s *sessions) set(node string, connected bool, _ time.Time) {
	s.mu.Lock()
	if connected {
		s.connected[node] = true
	} else {
		delete(s.connected, node)
	}
	s.mu.Unlock()
	s.Notify(node)
}

// Connected says whether a gateway holds a session of the node now.
func (s *sessions) Connected(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected[node]
}
