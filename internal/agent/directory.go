package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// Documents keeps documents across restarts: those that the authority signed and
// what the agent remembers itself.
type Documents interface {
	// Load returns the document of a kind; nil if there is none.
	Load(kind string) ([]byte, error)
	Save(kind string, document []byte) error
}

// avoidFor is how long a gateway that failed, or that said that it drains, is
// tried only after all others. It is what a restart takes, and not longer, so
// that nodes return home.
const avoidFor = time.Minute

// candidate is one gateway to try.
type candidate struct {
	id        string // empty: a seed, which may turn out to be any gateway
	addresses []string
}

func (c candidate) String() string {
	if c.id == "" {
		return c.addresses[0]
	}
	return c.id + " (" + c.addresses[0] + ")"
}

// directory is what the agent knows of gateways and of what it may dial, both
// from documents that the cluster's authority signed.
type directory struct {
	node  string
	ca    *x509.Certificate // nil: no document is believed
	seeds []string
	keep  Documents // nil: nothing is kept

	mu       sync.Mutex // guards all below
	gateways *signed.Gateways
	policy   *signed.Policy
	avoid    map[string]time.Time // until when, by id
}

// load reads the documents that were kept.
func (d *directory) load() error {
	d.avoid = map[string]time.Time{}
	if d.keep == nil {
		return nil
	}
	var errs []error
	for kind, set := range map[string]func([]byte) (bool, error){signed.KindGateways: d.setGateways, signed.KindPolicy: d.setPolicy} {
		doc, err := d.keep.Load(kind)
		if err == nil && doc != nil {
			_, err = set(doc)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// errNoCA: an agent that was given no authority believes no document.
var errNoCA = errors.New("this agent knows no authority to verify it with")

// setGateways takes over a list that is newer than the one there is.
func (d *directory) setGateways(doc []byte) (changed bool, err error) {
	if d.ca == nil {
		return false, fmt.Errorf("list of gateways: %w", errNoCA)
	}
	list, err := signed.VerifyGateways(d.ca, doc)
	if err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gateways != nil && d.gateways.Version >= list.Version {
		return false, nil
	}
	d.gateways = list
	return true, nil
}

// setPolicy takes over a policy that is newer than the one there is.
func (d *directory) setPolicy(doc []byte) (changed bool, err error) {
	if d.ca == nil {
		return false, fmt.Errorf("node policy: %w", errNoCA)
	}
	policy, err := signed.VerifyPolicy(d.ca, d.node, doc)
	if err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.policy != nil && d.policy.Version >= policy.Version {
		return false, nil
	}
	d.policy = policy
	return true, nil
}

// take is setGateways or setPolicy for a document from a gateway, and keeps it.
func (d *directory) take(kind string, doc []byte) (changed bool, err error) {
	set := d.setGateways
	if kind == signed.KindPolicy {
		set = d.setPolicy
	}
	if changed, err = set(doc); err != nil || !changed || d.keep == nil {
		return changed, err
	}
	if err := d.keep.Save(kind, doc); err != nil {
		return true, fmt.Errorf("keep document %s: %w", kind, err)
	}
	return true, nil
}

func (d *directory) currentPolicy() *signed.Policy {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.policy
}

// candidates are the gateways in the order to try: the node's order of the
// signed list, those to be avoided after the others, and last of all the seeds,
// in case the whole list has moved.
func (d *directory) candidates(now time.Time) []candidate {
	d.mu.Lock()
	defer d.mu.Unlock()
	var good, avoided []candidate
	if d.gateways != nil {
		for _, gw := range d.gateways.Rank(d.node) {
			c := candidate{gw.ID, gw.Addresses}
			if now.Before(d.avoid[gw.ID]) {
				avoided = append(avoided, c)
			} else {
				good = append(good, c)
			}
		}
	}
	out := append(good, avoided...)
	for _, s := range d.seeds {
		known := slices.ContainsFunc(out, func(c candidate) bool { return slices.Contains(c.addresses, s) })
		if !known {
			out = append(out, candidate{addresses: []string{s}})
		}
	}
	return out
}

// avoiding says that the gateway is to be tried after all others for a while.
func (d *directory) avoiding(id string, until time.Time) {
	if id == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.avoid[id] = until
}

// better are the gateways that come before the one of that id.
func (d *directory) better(id string, now time.Time) []candidate {
	all := d.candidates(now)
	i := slices.IndexFunc(all, func(c candidate) bool { return c.id == id })
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []candidate
	for _, c := range all[:max(i, 0)] {
		if !now.Before(d.avoid[c.id]) {
			out = append(out, c)
		}
	}
	return out
}

// verify is called at the end of a handshake whose certificate chain is good: a
// gateway of the list proves that it is the one that was dialled, and with a
// list there is no other gateway.
func (d *directory) verify(want string, cs tls.ConnectionState) error {
	id := tunnel.GatewayID(cs.PeerCertificates[0])
	if want != "" && id != want {
		return fmt.Errorf("gateway %s was dialled and %q answered", want, id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gateways == nil {
		return nil
	}
	if _, ok := d.gateways.Find(id); !ok {
		return fmt.Errorf("gateway %q is not in the cluster's signed list (version %d)", id, d.gateways.Version)
	}
	return nil
}
