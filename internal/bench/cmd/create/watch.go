//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// dial returns a client of a cluster with an operator's credentials.
func (w *world) dial(ctx context.Context, name string) (client.WithWatch, error) {
	id, err := w.engine.Resolve(name)
	if err != nil {
		return nil, err
	}
	creds, err := w.engine.ClusterCredentials(ctx, id, engine.DefaultCredentialTTL)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	return client.NewWithWatch(&rest.Config{
		Host: creds.Host,
		TLSClientConfig: rest.TLSClientConfig{
			CAData: []byte(creds.CACertificate), CertData: []byte(creds.ClientCertificate), KeyData: []byte(creds.ClientKey),
		},
	}, client.Options{Scheme: scheme})
}

// milestones are when a node's Node was first seen at all, first Ready, and its
// EdgeNode first Ready (which also means placed).
type milestones struct{ registered, nodeReady, ready time.Time }

// watchNode follows a node until it is Ready or ctx ends. It watches, so the
// cluster is asked nothing while it works. The channel gets one value.
func watchNode(ctx context.Context, c client.WithWatch, name string) (<-chan milestones, error) {
	nodes, err := c.Watch(ctx, &corev1.NodeList{})
	if err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	edges, err := c.Watch(ctx, &v1alpha1.EdgeNodeList{})
	if err != nil {
		nodes.Stop()
		return nil, fmt.Errorf("watch edge nodes: %w", err)
	}
	out := make(chan milestones, 1)
	go func() {
		defer nodes.Stop()
		defer edges.Stop()
		var m milestones
		for m.ready.IsZero() || m.nodeReady.IsZero() {
			var event watch.Event
			var open bool
			select {
			case event, open = <-nodes.ResultChan():
			case event, open = <-edges.ResultChan():
			case <-ctx.Done():
			}
			if !open {
				break // the watch ended early: what is missing stays zero
			}
			m.see(event.Object, name, time.Now())
		}
		out <- m
	}()
	return out, nil
}

func (m *milestones) see(o runtime.Object, name string, now time.Time) {
	first := func(t *time.Time, is bool) {
		if is && t.IsZero() {
			*t = now
		}
	}
	switch o := o.(type) {
	case *corev1.Node:
		if o.Name != name {
			return
		}
		first(&m.registered, true)
		for _, c := range o.Status.Conditions {
			first(&m.nodeReady, c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue)
		}
	case *v1alpha1.EdgeNode:
		first(&m.ready, o.Name == name && o.Status.Phase == v1alpha1.NodeReady)
	}
}
