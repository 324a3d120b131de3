//go:build linux

package edgenode

import (
	"context"
	"slices"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/hub"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// autonomyLook is how often the status is brought up to date with what would
// keep the node from being without its cluster; with the link it is at once.
const autonomyLook = 5 * time.Second

// heartbeat is what the node says of itself to its gateway, which renews the
// node's lease by it.
func (n *node) heartbeat() tunnel.Heartbeat {
	h := n.hub.Load()
	if h == nil {
		return tunnel.Heartbeat{}
	}
	var autonomy tunnel.Autonomy
	for _, f := range h.Faults() {
		autonomy.Faults = append(autonomy.Faults, tunnel.Fault{Reason: f.Reason, Message: clip(f.Message)})
	}
	beat := tunnel.Heartbeat{Autonomy: &autonomy}
	if at, ok := h.KubeletRenewed(); ok {
		beat = beat.WithKubeletAge(n.now().Sub(at))
	}
	return beat
}

// maxFault is how much of a fault's message goes to the gateway, which takes 512
// bytes.
const maxFault = 500

func clip(message string) string {
	if len(message) <= maxFault {
		return message
	}
	cut := maxFault
	for cut > 0 && message[cut]&0xC0 == 0x80 { // not in the middle of a rune
		cut--
	}
	return message[:cut] + "…"
}

// tellAutonomy keeps what the status says of the hub up to date.
func (n *node) tellAutonomy(ctx context.Context, h *hub.Hub) error {
	var last []Fault
	var lastLink string
	for {
		var faults []Fault
		for _, f := range h.Faults() {
			faults = append(faults, Fault(f))
		}
		link := ""
		if s := h.LinkState(); !s.Online {
			link = s.Reason
		}
		if !slices.Equal(faults, last) || link != lastLink {
			last, lastLink = faults, link
			n.status.update(func(s *Status) { s.Faults, s.CutReason = faults, link })
		}
		look := time.NewTimer(autonomyLook)
		select {
		case <-look.C:
		case <-n.linkMoved:
			look.Stop()
		case <-ctx.Done():
			look.Stop()
			return nil
		}
	}
}
