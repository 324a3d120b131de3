package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// KindNetworks is the kind under which Documents keeps what got through on
	// which network. It is not signed: it is the agent's own.
	KindNetworks = "networks"
	// maxNetworks bounds what is remembered: a device that travels sees a few
	// networks again and again.
	maxNetworks = 64
	// maxNetworkField bounds each field in bytes; the longest, an IPv6 prefix
	// with a zone, has about 60.
	maxNetworkField = 64
)

// Network says which network the node is on: what its default gateway is and
// how it is reached. Any of it may be empty.
type Network struct {
	// Gateway is the default gateway's address, MAC its link address; the
	// latter is not known before something was sent to it.
	Gateway string `json:"gateway,omitempty"`
	MAC     string `json:"mac,omitempty"`
	// Interface is the name of the device, Prefix its address range.
	Interface string `json:"interface,omitempty"`
	Prefix    string `json:"prefix,omitempty"`
}

// matches reports whether n may be o: a link address that is not known yet
// fits every one.
func (n Network) matches(o Network) bool {
	if n.MAC == "" || o.MAC == "" {
		n.MAC, o.MAC = "", ""
	}
	return n == o
}

// remembered is what worked on a network.
type remembered struct {
	Network   Network   `json:"network"`
	Transport Transport `json:"transport"`
	At        time.Time `json:"at"`
}

// networks remembers which transport got through where, so that a node behind
// a firewall does not wait for QUIC each time, a reboot included.
type networks struct {
	keep Documents // nil: for as long as the process lives

	mu   sync.Mutex   // guards list
	list []remembered // the most recent first
}

// load reads what was kept.
func (n *networks) load() error {
	if n.keep == nil {
		return nil
	}
	data, err := n.keep.Load(KindNetworks)
	if err != nil || data == nil {
		return err
	}
	list, err := parseNetworks(data)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = list
	return nil
}

// transport is what worked on the network last; "" if that is not known.
func (n *networks) transport(at Network) Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.list {
		if r.Network.matches(at) {
			return r.Transport
		}
	}
	return ""
}

// remember records what works on the network now.
func (n *networks) remember(at Network, t Transport, now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.list, func(r remembered) bool { return r.Network.matches(at) })
	if i >= 0 && at.MAC == "" {
		at = n.list[i].Network // which says more
	}
	if i == 0 && n.list[0].Transport == t && n.list[0].Network == at {
		return nil
	}
	if i >= 0 {
		n.list = slices.Delete(n.list, i, i+1)
	}
	n.list = slices.Insert(n.list, 0, remembered{at, t, now.UTC()})
	n.list = n.list[:min(len(n.list), maxNetworks)]
	if n.keep == nil {
		return nil
	}
	data, err := json.Marshal(n.list)
	if err != nil {
		return fmt.Errorf("remember networks: %w", err)
	}
	if err := n.keep.Save(KindNetworks, data); err != nil {
		return fmt.Errorf("remember networks: %w", err)
	}
	return nil
}

// parseNetworks reads what remember wrote. Anything else in it is refused as a
// whole: it is only a memory.
func parseNetworks(data []byte) ([]remembered, error) {
	var list []remembered
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("remembered networks: %w", err)
	}
	if len(list) > maxNetworks {
		return nil, fmt.Errorf("remembered networks: %d are more than the %d allowed", len(list), maxNetworks)
	}
	for _, r := range list {
		if r.Transport != QUIC && r.Transport != TCP {
			return nil, errors.New("remembered networks: one has no transport")
		}
		for _, f := range []string{r.Network.Gateway, r.Network.MAC, r.Network.Interface, r.Network.Prefix} {
			if len(f) > maxNetworkField || !utf8.ValidString(f) {
				return nil, errors.New("remembered networks: a field is too long")
			}
		}
	}
	return list, nil
}
