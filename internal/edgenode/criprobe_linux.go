//go:build linux

package edgenode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// Calls of containerd. The first is the kubelet's own first one; the other
// tells which plugins did not load, and why.
const (
	criVersion  = "/runtime.v1.RuntimeService/Version"
	pluginsCall = "/containerd.services.introspection.v1.Introspection/Plugins"
)

// criProbe is ready when containerd serves the kubelet. Its socket alone says
// little: containerd goes on without a plugin that failed to load, for as long
// as it runs, and a kubelet cannot start then.
func criProbe(socket string) supervise.Probe {
	return func(ctx context.Context) error {
		conn, err := grpc.NewClient("unix://"+socket,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
		if err != nil {
			return fmt.Errorf("probe containerd: %w", err)
		}
		defer conn.Close()
		var answer []byte
		err = conn.Invoke(ctx, criVersion, []byte(nil), &answer)
		if status.Code(err) == codes.Unimplemented {
			return &supervise.BrokenError{Err: criFailure(ctx, conn)}
		}
		if err != nil {
			return fmt.Errorf("probe containerd: %w", err)
		}
		return nil
	}
}

// criFailure says why containerd has no CRI service.
func criFailure(ctx context.Context, conn *grpc.ClientConn) error {
	var answer []byte
	if err := conn.Invoke(ctx, pluginsCall, []byte(nil), &answer); err != nil {
		return fmt.Errorf("containerd runs without its CRI plugin, and does not say why: %w", err)
	}
	failures, err := pluginFailures(answer)
	if err != nil {
		return fmt.Errorf("containerd runs without its CRI plugin, and its list of plugins is damaged: %w", err)
	}
	if len(failures) == 0 {
		return errors.New("containerd runs without its CRI plugin")
	}
	err = fmt.Errorf("containerd could not load its CRI plugin: %s", strings.Join(failures, "; "))
	if strings.Contains(err.Error(), "inotify") {
		err = fmt.Errorf("%w (type `sudo sysctl fs.inotify.max_user_instances=512`)", err)
	}
	return err
}

// rawCodec passes messages as they are: the two calls need no more than a few
// fields, and no generated code.
type rawCodec struct{}

// Name implements encoding.Codec.
func (rawCodec) Name() string { return "proto" }

// Marshal implements encoding.Codec.
func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("message of type %T", v)
	}
	return b, nil
}

// Unmarshal implements encoding.Codec.
func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("message of type %T", v)
	}
	*b = slices.Clone(data)
	return nil
}

// Field numbers of containerd's introspection API
// (api/services/introspection/v1/introspection.proto) and of google.rpc.Status.
const (
	fieldPlugins       = 1
	fieldPluginType    = 1
	fieldPluginID      = 2
	fieldPluginInitErr = 7
	fieldStatusMessage = 2
)

// pluginFailures reads a PluginsResponse: the errors of those plugins that the
// CRI service is made of, as "type.id: error".
func pluginFailures(data []byte) ([]string, error) {
	var out []string
	err := eachBytes(data, func(field protowire.Number, plugin []byte) error {
		if field != fieldPlugins {
			return nil
		}
		var kind, id, message string
		err := eachBytes(plugin, func(field protowire.Number, value []byte) error {
			switch field {
			case fieldPluginType:
				kind = string(value)
			case fieldPluginID:
				id = string(value)
			case fieldPluginInitErr:
				return eachBytes(value, func(field protowire.Number, value []byte) error {
					if field == fieldStatusMessage {
						message = strings.ToValidUTF8(string(value), "?")
					}
					return nil
				})
			}
			return nil
		})
		of := strings.HasPrefix(kind, "io.containerd.cri.") || kind == "io.containerd.grpc.v1" && id == "cri"
		if err == nil && of && message != "" {
			out = append(out, kind+"."+id+": "+message)
		}
		return err
	})
	return out, err
}

// eachBytes visits the fields of a message that have a length: strings, bytes
// and messages.
func eachBytes(data []byte, visit func(field protowire.Number, value []byte) error) error {
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(field, kind, data); n < 0 {
				return protowire.ParseError(n)
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := visit(field, value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
