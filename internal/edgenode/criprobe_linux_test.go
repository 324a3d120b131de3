//go:build linux

package edgenode

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

// plugins is a PluginsResponse: type, id and error of each.
func plugins(all ...[3]string) []byte {
	var out []byte
	for _, p := range all {
		m := append(field(fieldPluginType, []byte(p[0])), field(fieldPluginID, []byte(p[1]))...)
		if p[2] != "" {
			code := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 2)
			m = append(m, field(fieldPluginInitErr, append(code, field(fieldStatusMessage, []byte(p[2]))...))...)
		}
		out = append(out, field(fieldPlugins, m)...)
	}
	return out
}

func TestCRIProbe(t *testing.T) {
	broken := plugins(
		[3]string{"io.containerd.snapshotter.v1", "zfs", "skip plugin"},
		[3]string{"io.containerd.cri.v1", "images", ""},
		[3]string{"io.containerd.grpc.v1", "cri", "failed to create fsnotify watcher: too many open files: couldn't initialize inotify"},
	)
	tests := map[string]struct {
		answers map[string][]byte // by method; others are unimplemented
		broken  bool
		want    []string // in the error; none: ready
	}{
		"it serves":        {map[string][]byte{criVersion: {}}, false, nil},
		"without plugin":   {map[string][]byte{pluginsCall: broken}, true, []string{"fsnotify watcher", "io.containerd.grpc.v1.cri", "sudo sysctl fs.inotify.max_user_instances=512"}},
		"nobody knows why": {map[string][]byte{pluginsCall: plugins()}, true, []string{"without its CRI plugin"}},
		"another program":  {nil, true, []string{"does not say why"}},
		"damaged":          {map[string][]byte{pluginsCall: {0xff}}, true, []string{"damaged"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			var lc net.ListenConfig
			l, err := lc.Listen(t.Context(), "unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
				method, _ := grpc.MethodFromServerStream(stream)
				answer, ok := tt.answers[method]
				if !ok {
					return status.Error(codes.Unimplemented, "unknown service")
				}
				var request []byte
				if err := stream.RecvMsg(&request); err != nil {
					return err
				}
				return stream.SendMsg(answer)
			}))
			served := make(chan error, 1)
			go func() { served <- server.Serve(l) }()
			defer func() {
				server.Stop()
				if err := <-served; err != nil {
					t.Error(err)
				}
			}()
			err = criProbe(socket)(t.Context())
			if len(tt.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*supervise.BrokenError](err); ok != tt.broken {
				t.Errorf("%T: %v", err, err)
			}
			for _, w := range tt.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("got %v, want %q", err, w)
				}
			}
			if err != nil && strings.Contains(err.Error(), "zfs") {
				t.Errorf("a plugin that has nothing to do with it is blamed: %v", err)
			}
		})
	}
}

// A socket that nobody serves yet is waited for.
func TestCRIProbeWaits(t *testing.T) {
	err := criProbe(filepath.Join(t.TempDir(), "none"))(context.Background())
	if _, ok := errors.AsType[*supervise.BrokenError](err); ok || err == nil {
		t.Errorf("got %v", err)
	}
}

func FuzzPluginFailures(f *testing.F) {
	f.Add(plugins([3]string{"io.containerd.grpc.v1", "cri", "x"}))
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := pluginFailures(data)
		if err == nil {
			for _, text := range found {
				if !strings.Contains(text, ": ") {
					t.Fatalf("%q", text)
				}
			}
		}
	})
}
