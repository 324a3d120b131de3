//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
)

// schemaRounds: one is a fraction of a second.
const schemaRounds = 10

// magicCookie is what every Terraform provider is started with
// (terraform-plugin-go, tfprotov6/tf6server).
const magicCookie = "TF_PLUGIN_MAGIC_COOKIE=d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2"

// maxSchema bounds an answer; Terraform's own bound.
const maxSchema = 256 << 20

// pluginTimeout bounds a schema request with the plugin's start.
const pluginTimeout = 30 * time.Second

// measurePlugin starts the plugin as Terraform does and asks for its schema.
func measurePlugin(ctx context.Context, w *world) ([]bench.Row, error) {
	var ours, peer bench.Sample
	var ourMemory, peerMemory bench.Sample
	for round := range schemaRounds + 1 { // the first warms up
		for _, p := range []struct {
			path         string
			took, memory *bench.Sample
		}{{w.plugin, &ours, &ourMemory}, {w.peer, &peer, &peerMemory}} {
			if p.path == "" {
				continue
			}
			took, use, err := requestSchema(ctx, p.path)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				p.took.Add(took)
				*p.memory = append(*p.memory, mib(use.rss))
			}
		}
	}
	rows := bench.Spread("schema request: plugin start to answer", "s", ours, w.peerName, peer)
	rows = append(rows, bench.Spread("memory of the plugin after the schema request, resident", "MiB", ourMemory, w.peerName, peerMemory)...)
	size, err := sizeRow(w)
	if err != nil {
		return nil, err
	}
	w.say("schema request %.3f s", ours.Median())
	return append(rows, size), nil
}

func sizeRow(w *world) (bench.Row, error) {
	st, err := os.Stat(w.plugin)
	if err != nil {
		return bench.Row{}, err
	}
	r := bench.Row{Name: "size of the plugin (which is also the edge command line and the daemons)", Unit: "MB", Ours: float64(st.Size()) / 1e6}
	if w.peer == "" {
		return r, nil
	}
	st, err = os.Stat(w.peer)
	if err != nil {
		return bench.Row{}, err
	}
	return r.With(w.peerName, float64(st.Size())/1e6), nil
}

// requestSchema starts a plugin, speaks go-plugin's handshake and asks for the
// schema. The time is from the start of the process to the whole answer.
func requestSchema(ctx context.Context, plugin string) (took time.Duration, use usage, err error) {
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, plugin)
	cmd.Env = []string{"HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH"), magicCookie, "PLUGIN_PROTOCOL_VERSIONS=5,6"}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, usage{}, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, usage{}, err
	}
	defer func() {
		// Killed, as Terraform does where a plugin does not end at once: it holds nothing.
		killed := cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
		err = errors.Join(err, killed)
	}()
	line, err := bufio.NewReader(io.LimitReader(stdout, 4096)).ReadString('\n')
	if err != nil {
		return 0, usage{}, fmt.Errorf("%s says no handshake: %w", plugin, err)
	}
	address, method, err := parseHandshake(line)
	if err != nil {
		return 0, usage{}, fmt.Errorf("%s: %w", plugin, err)
	}
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxSchema), grpc.ForceCodec(rawCodec{})))
	if err != nil {
		return 0, usage{}, err
	}
	defer conn.Close()
	var answer []byte
	if err := conn.Invoke(ctx, method, []byte{}, &answer); err != nil {
		return 0, usage{}, fmt.Errorf("ask %s for its schema: %w", plugin, err)
	}
	took = time.Since(began)
	if len(answer) == 0 {
		return 0, usage{}, fmt.Errorf("%s answers with an empty schema", plugin)
	}
	use, err = usageOf(cmd.Process.Pid)
	return took, use, err
}

// parseHandshake reads go-plugin's line "1|6|unix|/path|grpc|certificate" and
// returns the address and the method that asks for the schema.
func parseHandshake(line string) (address, method string, err error) {
	f := strings.Split(strings.TrimSpace(line), "|")
	if len(f) < 5 || f[0] != "1" || f[2] != "unix" || f[4] != "grpc" {
		return "", "", fmt.Errorf("handshake %q is not of a plugin that speaks gRPC on a unix socket", line)
	}
	switch f[1] {
	case "5":
		return f[3], "/tfplugin5.Provider/GetSchema", nil
	case "6":
		return f[3], "/tfplugin6.Provider/GetProviderSchema", nil
	}
	return "", "", fmt.Errorf("handshake %q names an unknown protocol", line)
}

// rawCodec passes messages as bytes: the request is empty and nothing in the
// answer is looked at.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("cannot send a %T", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("cannot receive a %T", v)
	}
	*b = append([]byte(nil), data...)
	return nil
}
