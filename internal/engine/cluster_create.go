package engine

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/controlplane"
)

// CreateCluster makes a cluster, or goes on with an unfinished create of that
// name. From the moment an id is recorded it returns the cluster beside any
// error; a caller that stops half-way (ctx) gets class Unfinished.
func (e *Engine) CreateCluster(ctx context.Context, spec ClusterSpec) (*Cluster, error) {
	const op = "create cluster"
	spec.Version = normalVersion(spec.Version)
	if err := CheckClusterSpec(spec); err != nil {
		return nil, err
	}
	if e.opts.GOOS != "linux" {
		return nil, &Error{Class: Invalid, Op: op, Object: spec.Name, Field: "local",
			Err:  fmt.Errorf("a local cluster runs on Linux and this is %s", e.opts.GOOS),
			Next: "Run this on a Linux machine"}
	}
	r, err := e.claim(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := e.converge(ctx, r, op); err != nil {
		return e.describe(r, r.status()), err
	}
	return e.describe(r, StatusReady), nil
}

// claim records a cluster of that name, or finds the unfinished one to go on with.
func (e *Engine) claim(ctx context.Context, spec ClusterSpec) (*record, error) {
	const op = "create cluster"
	unlock, err := e.state.lock(ctx)
	if err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: spec.Name, Err: err}
	}
	defer unlock()
	found, err := e.state.byName(spec.Name)
	if err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: spec.Name, Err: err}
	}
	if found != nil {
		switch found.Phase {
		case phaseReady:
			return nil, &Error{Class: AlreadyExists, Op: op, Object: spec.Name,
				Err: fmt.Errorf("cluster %s exists", found.ID), ImportID: found.ID}
		case phaseDestroying:
			return nil, &Error{Class: AlreadyExists, Op: op, Object: spec.Name,
				Err:  fmt.Errorf("cluster %s is half destroyed", found.ID),
				Next: fmt.Sprintf("Finish that first: edge destroy %s", found.ID)}
		}
		if field, err := conflict(found.Spec, spec); err != nil {
			return nil, &Error{Class: Refused, Op: op, Object: found.ID, Field: field,
				Err:  fmt.Errorf("its unfinished create was asked for otherwise: %w", err),
				Next: fmt.Sprintf("Go back to that, or remove it: edge destroy %s", found.ID)}
		}
		return found, nil
	}

	uid, err := newUID()
	if err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: spec.Name, Err: err}
	}
	r := &record{
		ID:            "local/" + spec.Name + "-" + uid,
		UID:           uid,
		Spec:          spec,
		Phase:         phaseCreated,
		EngineVersion: e.opts.Version,
		CreatedAt:     e.opts.Now().UTC(),
	}
	records, err := e.state.list()
	if err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: spec.Name, Err: err}
	}
	if err := e.choose(r, records); err != nil {
		return nil, err
	}
	if err := e.state.save(r); err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: spec.Name, Err: err}
	}
	return r, nil
}

// choose fills in addresses and ports: free on this machine and of no other
// cluster in the state directory, running or stopped.
func (e *Engine) choose(r *record, others []*record) error {
	routes, err := hostRoutes()
	if err != nil {
		return &Error{Class: Failed, Op: "create cluster", Object: r.ID, Err: fmt.Errorf("read this machine's routes: %w", err)}
	}
	var used = slices.Clone(routes[:0])
	taken := map[int]bool{}
	for _, o := range others {
		for _, cidrs := range [][]string{o.Spec.Network.PodCIDRs, o.Spec.Network.ServiceCIDRs} {
			ps, err := parsePrefixes(cidrs)
			if err != nil {
				return &Error{Class: Failed, Op: "read cluster", Object: o.ID, Err: err}
			}
			used = append(used, ps...)
		}
		spec, err := controlplane.LoadSpec(e.dirOf(o))
		if errors.Is(err, fs.ErrNotExist) {
			taken[o.Spec.API.Port] = true
			taken[o.Spec.Gateway.Port] = true
			continue
		}
		if err != nil {
			return &Error{Class: Failed, Op: "read cluster", Object: o.ID, Err: err}
		}
		for _, p := range spec.Ports.All() {
			taken[p] = true
		}
		taken[spec.Ports.Gateway] = true
	}
	if err := chooseRanges(&r.Spec.Network, routes, used); err != nil {
		return err
	}
	for _, p := range []struct {
		name, field string
		use         portUse
		port        *int
	}{
		{"API port", "api.port", usedByAPI, &r.Spec.API.Port},
		{"gateway port", "gateway.port", usedByGateway, &r.Spec.Gateway.Port},
	} {
		if *p.port == 0 {
			port, err := choosePort(p.use, portSeed(r.UID), taken)
			if err != nil {
				return &Error{Class: Failed, Op: "create cluster", Object: r.ID, Err: err, Next: "Set " + p.field}
			}
			*p.port = port
			continue
		}
		if taken[*p.port] {
			return &Error{Class: Invalid, Op: "use", Object: fmt.Sprintf("%s %d", p.name, *p.port), Field: p.field,
				Err: errors.New("another cluster of this state directory, or its own API, holds it"), Next: "Choose another, or leave it out to have a free one picked"}
		}
		if err := portFree(p.use, *p.port); err != nil {
			return &Error{Class: Invalid, Op: "use", Object: fmt.Sprintf("%s %d", p.name, *p.port), Field: p.field,
				Err: err, Next: "Choose another, or leave it out to have a free one picked"}
		}
		taken[*p.port] = true
	}
	return nil
}

func portSeed(uid string) uint32 {
	b, err := hex.DecodeString(uid)
	if err != nil || len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// conflict says in which attribute a request differs from what an unfinished
// create has fixed. What the request leaves open cannot differ.
func conflict(fixed, asked ClusterSpec) (field string, err error) {
	differs := func(field string, fixed, asked any, open bool) (string, error) {
		if open || fmt.Sprint(fixed) == fmt.Sprint(asked) {
			return "", nil
		}
		return field, fmt.Errorf("%s is %v and not %v", field, fixed, asked)
	}
	for _, c := range []struct {
		field        string
		fixed, asked any
		open         bool
	}{
		{"version", fixed.Version, asked.Version, false},
		{"network.pod_cidrs", fixed.Network.PodCIDRs, asked.Network.PodCIDRs, len(asked.Network.PodCIDRs) == 0},
		{"network.service_cidrs", fixed.Network.ServiceCIDRs, asked.Network.ServiceCIDRs, len(asked.Network.ServiceCIDRs) == 0},
		{"network.node_mask", fixed.Network.NodeMask, asked.Network.NodeMask, asked.Network.NodeMask == 0},
		{"network.dns_domain", fixed.Network.DNSDomain, asked.Network.DNSDomain, asked.Network.DNSDomain == ""},
		{"api.port", fixed.API.Port, asked.API.Port, asked.API.Port == 0},
		{"gateway.port", fixed.Gateway.Port, asked.Gateway.Port, asked.Gateway.Port == 0},
	} {
		if field, err := differs(c.field, c.fixed, c.asked, c.open); err != nil {
			return field, err
		}
	}
	return "", nil
}

// converge does what is left to do until the cluster of a record is ready. Each
// step looks at what is there, so that it can be run at any time: to create, to
// go on, to start a stopped cluster, to take a changed spec.
func (e *Engine) converge(ctx context.Context, r *record, op string) error {
	dir := e.dirOf(r)
	report := e.report(r.ID, filepath.Join(dir, "progress.ndjson"))
	fail := func(phase string, err error) error {
		var own *Error
		if errors.As(err, &own) && own.Class != Failed {
			return err
		}
		if interrupted(ctx, err) {
			return &Error{Class: Unfinished, Op: op, Object: r.ID,
				Err:  fmt.Errorf("stopped in phase %q: %w", phase, err),
				Next: "Apply again to go on; " + logsHint(r.ID)}
		}
		return &Error{Class: Failed, Op: op, Object: r.ID, Err: fmt.Errorf("phase %q: %w", phase, err), Next: logsHint(r.ID)}
	}
	enter := func(phase, message string) error {
		report.phase(ctx, phase, message)
		if r.finished() {
			return nil // a ready cluster that is being started stays ready in its journal
		}
		r.Phase = phase
		return e.state.save(r)
	}

	if err := enter(phaseComponents, "upstream programs for Kubernetes "+r.Spec.Version); err != nil {
		return fail(phaseComponents, err)
	}
	programs, err := e.programs(ctx, report, r.Spec.Version, component.ControlPlane)
	if err != nil {
		return fail(phaseComponents, err)
	}

	if err := enter(phaseControlPlane, "starting etcd, apiserver, controllers and gateway"); err != nil {
		return fail(phaseControlPlane, err)
	}
	edge, err := e.installEdge()
	if err != nil {
		return fail(phaseControlPlane, err)
	}
	if err := e.writeControlPlaneSpec(ctx, r, programs); err != nil {
		return fail(phaseControlPlane, err)
	}
	if err := e.runEdge(ctx, report, edgeCommand{Binary: edge, Args: []string{"control-plane", "up", "--dir", dir}}); err != nil {
		return fail(phaseControlPlane, err)
	}

	if err := enter(phaseDeclare, "recording the declared spec in the cluster"); err != nil {
		return fail(phaseDeclare, err)
	}
	if err := e.declareCluster(ctx, r); err != nil {
		return fail(phaseDeclare, err)
	}
	r.Phase = phaseReady
	if err := e.state.save(r); err != nil {
		return fail(phaseDeclare, err)
	}
	report.phase(ctx, phaseReady, "")
	return nil
}

// writeControlPlaneSpec writes the daemon's spec. Ports that the user does not
// choose are found here once and kept for the cluster's life.
func (e *Engine) writeControlPlaneSpec(ctx context.Context, r *record, programs map[string]string) error {
	unlock, err := e.state.lock(ctx) // two clusters must not find the same port free
	if err != nil {
		return err
	}
	defer unlock()
	dir := e.dirOf(r)
	spec, err := controlplane.LoadSpec(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		spec = &controlplane.Spec{}
	case err != nil:
		return err
	}
	ports := spec.Ports
	if ports.EtcdClient == 0 {
		taken := map[int]bool{r.Spec.API.Port: true, r.Spec.Gateway.Port: true}
		records, err := e.state.list()
		if err != nil {
			return err
		}
		for _, o := range records {
			taken[o.Spec.API.Port], taken[o.Spec.Gateway.Port] = true, true
			if other, err := controlplane.LoadSpec(e.dirOf(o)); err == nil {
				for _, p := range other.Ports.All() {
					taken[p] = true
				}
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for _, p := range []*int{&ports.EtcdClient, &ports.EtcdPeer, &ports.ControllerManager, &ports.Scheduler} {
			if *p, err = choosePort(usedByAPI, portSeed(r.UID), taken); err != nil {
				return err
			}
		}
	}
	ports.API, ports.Gateway = r.Spec.API.Port, r.Spec.Gateway.Port
	*spec = controlplane.Spec{
		ClusterID:         r.ID,
		UID:               r.UID,
		Name:              r.Spec.Name,
		KubernetesVersion: r.Spec.Version,
		PodCIDRs:          r.Spec.Network.PodCIDRs,
		ServiceCIDRs:      r.Spec.Network.ServiceCIDRs,
		NodeMask:          r.Spec.Network.NodeMask,
		DNSDomain:         r.Spec.Network.DNSDomain,
		Ports:             ports,
		Programs:          programs,
		EngineVersion:     e.opts.Version,
	}
	return writeJSON(filepath.Join(dir, controlplane.SpecFile), spec)
}

func (e *Engine) dirOf(r *record) string {
	return e.state.dir(clusterID{Placement: "local", Name: r.Spec.Name, UID: r.UID})
}

func logsHint(id string) string {
	return fmt.Sprintf("`edge logs %s` shows what its processes said", id)
}

// describe is what is known of a cluster of the state directory.
func (e *Engine) describe(r *record, status string) *Cluster {
	c := &Cluster{
		ID:                r.ID,
		Spec:              r.Spec,
		Status:            status,
		KubernetesVersion: r.Spec.Version,
		EngineVersion:     r.EngineVersion,
		Endpoint:          fmt.Sprintf("https://127.0.0.1:%d", r.Spec.API.Port),
	}
	ca, err := os.ReadFile(filepath.Join(e.dirOf(r), "pki", "ca.crt"))
	if err == nil { // absent until the daemon has made it; the status says so
		c.CACertificate = string(ca)
		c.Kubeconfig = execKubeconfig(c, "edge")
	}
	return c
}
