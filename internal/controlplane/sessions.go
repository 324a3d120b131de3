//go:build linux

package controlplane

import (
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// sessions passes on which nodes hold a tunnel session and what they say on it,
// from the gateway to the controllers. Subscribe is the notifier's.
type sessions struct {
	*controllers.Notifier
	reports *controllers.ReportBoard
	leases  *controllers.LeaseKeeper

	mu        sync.Mutex // guards connected
	connected map[string]bool
}

var _ controllers.Sessions = (*sessions)(nil)

// newSessions takes the configuration of the identity edge:gateway.
func newSessions(gateway *rest.Config, logger *slog.Logger) (*sessions, error) {
	leases, err := controllers.NewLeaseKeeper(controllers.LeaseKeeperConfig{RESTConfig: gateway, Logger: logger})
	if err != nil {
		return nil, err
	}
	return &sessions{
		Notifier: controllers.NewNotifier(), reports: controllers.NewReportBoard(), leases: leases, connected: map[string]bool{},
	}, nil
}

// set is the gateway's OnSession.
func (s *sessions) set(node string, connected bool, _ time.Time) {
	s.mu.Lock()
	if connected {
		s.connected[node] = true
	} else {
		delete(s.connected, node)
		s.leases.Forget(node)
	}
	s.mu.Unlock()
	s.Notify(node)
}

// heartbeat is the gateway's OnHeartbeat.
func (s *sessions) heartbeat(node string, beat tunnel.Heartbeat) {
	s.leases.Beat(node, beat)
	s.reports.Set(node, beat)
}

// Connected says whether a gateway holds a session of the node now.
func (s *sessions) Connected(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected[node]
}
