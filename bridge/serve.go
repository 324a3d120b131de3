package bridge

import (
	"context"
	_ "embed" // the schema
	"encoding/json"
	"fmt"
	"os"
	"time"

	pfbridge "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/pf/tfbridge"
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	rprovider "github.com/pulumi/pulumi/pkg/v3/resource/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/edgewright/terraform-provider-edge/bridge/pkg/version"
)

//go:embed cmd/pulumi-resource-edge/schema.json
var schemaFile []byte

// versionedSchema is the schema as the CLI is told it. The file has no version, so
// that a release changes none of it.
func versionedSchema() ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(schemaFile, &fields); err != nil {
		return nil, fmt.Errorf("the package's schema: %w", err)
	}
	v, err := json.Marshal(version.Version)
	if err != nil {
		return nil, err
	}
	fields["version"] = v
	return json.Marshal(fields)
}

// parentInterval is how often the plugin looks whether the CLI that started it is
// still there: soon enough that a repeated `pulumi up` meets no old plugin.
const parentInterval = time.Second

// Serve is the Pulumi plugin: it serves the CLI that started this process until
// that is done with it, or gone.
func Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if len(os.Args) > 1 { // with the address of a CLI; without, a person debugs
		tick := time.NewTicker(parentInterval)
		defer tick.Stop()
		go watchParent(ctx, os.Getppid, tick.C, cancel)
	}
	return rprovider.MainContext(ctx, pkg, func(host *rprovider.HostClient) (pulumirpc.ResourceProviderServer, error) {
		return newServer(ctx, host, Provider())
	})
}

// watchParent calls orphaned once this process has another parent than it had. A
// CLI that is killed does not end its plugins, and they would stay for ever.
func watchParent(ctx context.Context, parent func() int, tick <-chan time.Time, orphaned func()) {
	first := parent()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			if parent() != first {
				orphaned()
				return
			}
		}
	}
}

// newServer is the plugin's service. host may be nil.
func newServer(ctx context.Context, host *rprovider.HostClient, info tfbridge.ProviderInfo) (pulumirpc.ResourceProviderServer, error) {
	spec, err := versionedSchema()
	if err != nil {
		return nil, err
	}
	for _, r := range info.Resources {
		whenServed(r.Fields)
	}
	whenServed(info.Config)
	meta := pfbridge.ProviderMetadata{PackageSchema: spec}
	var inner pulumirpc.ResourceProviderServer
	if host == nil { // not a nil pointer in an interface
		inner, err = pfbridge.NewProviderServer(ctx, nil, info, meta)
	} else {
		inner, err = pfbridge.NewProviderServer(ctx, host, info, meta)
	}
	if err != nil {
		return nil, err
	}
	return stoppable(ctx, inner), nil
}

// stoppableServer ends what runs when the CLI asks to: the bridge itself takes no
// notice, so that Ctrl-C would wait for a whole create. What is ended returns what
// it has made, with a status that says what is unfinished, and is in the stack's
// state then; the next `pulumi up` finishes it in place.
type stoppableServer struct {
	pulumirpc.ResourceProviderServer
	stopped context.Context // ends when the CLI asks to stop, or is gone
	stop    context.CancelFunc
}

func stoppable(ctx context.Context, inner pulumirpc.ResourceProviderServer) pulumirpc.ResourceProviderServer {
	s := &stoppableServer{ResourceProviderServer: inner}
	s.stopped, s.stop = context.WithCancel(ctx)
	return s
}

// until is ctx, which also ends when the server is stopped.
func (s *stoppableServer) until(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	detach := context.AfterFunc(s.stopped, cancel)
	return ctx, func() { detach(); cancel() }
}

// Cancel implements pulumirpc.ResourceProviderServer.
func (s *stoppableServer) Cancel(ctx context.Context, req *emptypb.Empty) (*emptypb.Empty, error) {
	s.stop()
	return s.ResourceProviderServer.Cancel(ctx, req)
}

// Create implements pulumirpc.ResourceProviderServer.
func (s *stoppableServer) Create(ctx context.Context, req *pulumirpc.CreateRequest) (*pulumirpc.CreateResponse, error) {
	ctx, release := s.until(ctx)
	defer release()
	return s.ResourceProviderServer.Create(ctx, req)
}

// Update implements pulumirpc.ResourceProviderServer.
func (s *stoppableServer) Update(ctx context.Context, req *pulumirpc.UpdateRequest) (*pulumirpc.UpdateResponse, error) {
	ctx, release := s.until(ctx)
	defer release()
	return s.ResourceProviderServer.Update(ctx, req)
}

// Delete implements pulumirpc.ResourceProviderServer.
func (s *stoppableServer) Delete(ctx context.Context, req *pulumirpc.DeleteRequest) (*emptypb.Empty, error) {
	ctx, release := s.until(ctx)
	defer release()
	return s.ResourceProviderServer.Delete(ctx, req)
}
