package hub

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
)

// Fault is one reason why the node would not go on through a cut and a reboot in
// it: a reason of the condition NodeAutonomy.
type Fault struct {
	// Reason is a word in CamelCase.
	Reason string `json:"reason"`
	// Message is a sentence for people.
	Message string `json:"message"`
}

// The reasons, the gravest first.
const (
	// FaultDisk: what the node learns is not on disk.
	FaultDisk = "DiskError"
	// FaultCache: something that a restart needs was never learned whole.
	FaultCache = "CacheIncomplete"
	// FaultClock: the clock shows a time that cannot be.
	FaultClock = "ClockUnset"
	// FaultCertificate: the node's certificate ends before it is renewed.
	FaultCertificate = "CertExpiring"
)

// certificateHorizon is how long before its end a certificate that was not
// renewed is a fault: it is due after two thirds of its life, so a third of a
// year's is far more, and one of an hour never gets there unless renewal fails.
const certificateHorizon = 7 * 24 * time.Hour

// Faults tells what would keep the node from being without its cluster now. None:
// nothing would. It is nil where the hub keeps no replica.
func (h *Hub) Faults() []Fault {
	if h.local == nil {
		return nil
	}
	var faults []Fault
	if r, ok := h.Replica(); ok {
		if r.DiskError != nil {
			faults = append(faults, Fault{FaultDisk, "the replica cannot be written: " + r.DiskError.Error()})
		}
		var missing []string
		for _, c := range r.Collections {
			if !c.Complete {
				missing = append(missing, c.Collection.String())
			}
		}
		if len(missing) > 0 {
			faults = append(faults, Fault{FaultCache, "not read whole yet: " + strings.Join(missing[:min(len(missing), 5)], ", ")})
		}
	}
	cert, err := h.config.NodeCertificate()
	if err != nil || cert == nil || len(cert.Certificate) == 0 {
		return append(faults, Fault{FaultCertificate, "the node has no certificate"})
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return append(faults, Fault{FaultCertificate, "the node's certificate cannot be read: " + err.Error()})
	}
	now := h.clock.Now()
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	horizon := min(certificateHorizon, life/6)
	switch {
	case now.Before(leaf.NotBefore):
		faults = append(faults, Fault{FaultClock, fmt.Sprintf("the clock shows %s, before the node's certificate begins", now.UTC().Format(time.RFC3339))})
	case now.After(leaf.NotAfter.Add(-horizon)):
		faults = append(faults, Fault{FaultCertificate, "the node's certificate ends " + leaf.NotAfter.UTC().Format(time.RFC3339)})
	}
	return slices.Clip(faults)
}

// LinkState is how the way to the apiserver is; online where the hub keeps no replica.
func (h *Hub) LinkState() link.State {
	if h.local == nil {
		return link.State{Online: true}
	}
	return h.local.link.State()
}
