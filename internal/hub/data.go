package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/mirror"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/store"
)

// Files of Config.DataDir.
const (
	storeFile = "replica.db"
	keyFile   = "replica.key"
)

// data is what the hub keeps on the node's disk, and what keeps it in step.
type data struct {
	store  *store.Store
	mirror *mirror.Mirror
}

// openData opens the node's replica and returns what requests are answered from.
// Everything that was complete when the hub last ran can be served at once.
func openData(h *Hub) (_ *data, _ *Local, err error) {
	dir := h.config.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("directory of the replica: %w", err)
	}
	d := &data{}
	var found []store.Stored
	d.store, found, err = store.Open(store.Options{
		Path: filepath.Join(dir, storeFile), KeyPath: filepath.Join(dir, keyFile), Clock: h.clock, Logger: h.log,
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.store.Close())
		}
	}()
	var mirrored []store.Stored
	remembered := map[replica.Collection][]*replica.Object{}
	for _, f := range found {
		if memo.Owns(f.Collection) {
			remembered[f.Collection] = f.Objects
		} else {
			mirrored = append(mirrored, f)
		}
	}
	own, err := h.synthetic.unversioned()
	if err != nil {
		return nil, nil, err
	}
	bundles := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	slices := schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	d.mirror, err = mirror.New(mirror.Options{
		NodeName: h.config.NodeName, Host: h.config.UpstreamServerName, Store: d.store, Found: mirrored,
		Upstreams: map[mirror.Identity]http.RoundTripper{
			mirror.NodeIdentity: h.roundTripper(nodeIdentity), mirror.HubIdentity: h.roundTripper(hubIdentity),
		},
		Own:     map[schema.GroupVersionResource][]*replica.Object{slices: {own}},
		Filters: map[schema.GroupVersionResource]mirror.Filter{slices: mirror.Drop(sliceNamespace, sliceName), bundles: addRootCA(h.config.RootCA)},
		Clock:   h.clock, Logger: h.log,
	})
	if err != nil {
		return nil, nil, err
	}
	return d, &Local{
		Replica: d.mirror, Layer: d.mirror, Memo: memo.New(d.store, remembered, h.log), PodCertificate: h.config.PodCertificate,
		// The gateway renews the node's lease, by what the agent says of
		// KubeletRenewed: nothing of it crosses the WAN but a heartbeat.
		RenewLease: false,
		OnLink:     func(s link.State) { d.mirror.SetLink(s.Online, s.Since) },
	}, nil
}

// run keeps the replica in step until ctx ends.
func (d *data) run(ctx context.Context) error { return d.mirror.Run(ctx) }

// unversioned returns the slice as an object of the replica.
func (s syntheticSlice) unversioned() (*replica.Object, error) {
	e := codec.Encoding{Protobuf: true}
	raw, err := s.encode(e, "")
	if err != nil {
		return nil, err
	}
	return replica.NewObject(e.Media(), raw)
}

// roundTripper is the way of one identity to the apiserver, for the mirror. A
// request that fails on it is told to the link.
func (h *Hub) roundTripper(as identity) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		response, err := h.upstreams[as].do(r)
		if err != nil && r.Context().Err() == nil && !errors.Is(err, errNoAnswer) {
			if link := h.Link(); link != nil {
				link.Failed(err)
			}
		}
		return response, err
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Replica is how the node's copy of the API does.
type Replica struct {
	Collections []mirror.Collection
	// Bytes that came for it from the apiserver since the hub began.
	Bytes int64
	// DiskError is why it cannot be written down; nil where it can.
	DiskError error
}

// Replica tells how the node's copy of the API does; false without a DataDir.
func (h *Hub) Replica() (Replica, bool) {
	if h.data == nil {
		return Replica{}, false
	}
	return Replica{Collections: h.data.mirror.Collections(), Bytes: h.data.mirror.Bytes(), DiskError: h.data.store.Err()}, true
}
