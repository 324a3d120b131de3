//go:build linux

package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// Calls of the kubelet's to its container runtime.
const (
	runtimeService  = "/runtime.v1.RuntimeService/"
	listContainers  = runtimeService + "ListContainers"
	listSandboxes   = runtimeService + "ListPodSandbox"
	removeSandboxes = runtimeService + "RemovePodSandbox"
)

// Field numbers of k8s.io/cri-api's runtime/v1/api.proto, and the states of a
// container that runs and of a sandbox that does not.
const (
	fieldItems         = 1 // of both lists
	fieldID            = 1 // of Container, PodSandbox and what RemovePodSandbox asks for
	fieldContainerMeta = 3
	fieldState         = 6
	fieldCreatedAt     = 7
	fieldMetaName      = 1 // of ContainerMetadata
	stateRunning       = 1
	fieldSandboxState  = 3
	stateNotReady      = 1
)

// container is one that a container runtime knows.
type container struct {
	id, name string
	running  bool
	created  time.Time
}

// runtimeClient asks a container runtime, as the kubelet does.
type runtimeClient struct{ *grpc.ClientConn }

// runtimeAt is the runtime that serves a socket. The caller must call Close.
func runtimeAt(socket string) (runtimeClient, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plainBytes{})))
	return runtimeClient{conn}, err
}

func (c runtimeClient) call(ctx context.Context, method string, request []byte) (answer []byte, err error) {
	if err := c.Invoke(ctx, method, request, &answer); err != nil {
		return nil, fmt.Errorf("ask the container runtime (%s): %w", path.Base(method), err)
	}
	return answer, nil
}

func (c runtimeClient) containers(ctx context.Context) (found []container, err error) {
	answer, err := c.call(ctx, listContainers, nil)
	if err != nil {
		return nil, err
	}
	err = eachField(answer, func(field protowire.Number, value []byte, _ uint64) error {
		if field != fieldItems {
			return nil
		}
		one, err := parseContainer(value)
		found = append(found, one)
		return err
	})
	return found, err
}

// removeDead removes the sandboxes that have ended, with their containers.
func (c runtimeClient) removeDead(ctx context.Context) error {
	answer, err := c.call(ctx, listSandboxes, nil)
	if err != nil {
		return err
	}
	return eachField(answer, func(field protowire.Number, value []byte, _ uint64) error {
		if field != fieldItems {
			return nil
		}
		id, dead := "", false
		err := eachField(value, func(field protowire.Number, value []byte, number uint64) error {
			switch field {
			case fieldID:
				id = string(value)
			case fieldSandboxState:
				dead = number == stateNotReady
			}
			return nil
		})
		if err == nil && dead {
			_, err = c.call(ctx, removeSandboxes, protowire.AppendString(protowire.AppendTag(nil, fieldID, protowire.BytesType), id))
		}
		return err
	})
}

func parseContainer(message []byte) (c container, err error) {
	err = eachField(message, func(field protowire.Number, value []byte, number uint64) error {
		switch field {
		case fieldID:
			c.id = string(value)
		case fieldState:
			c.running = number == stateRunning
		case fieldCreatedAt:
			c.created = time.Unix(0, int64(number)) //nolint:gosec // an int64 on the wire
		case fieldContainerMeta:
			return eachField(value, func(field protowire.Number, value []byte, _ uint64) error {
				if field == fieldMetaName {
					c.name = string(value)
				}
				return nil
			})
		}
		return nil
	})
	return c, err
}

// eachField visits the fields of a message: those with a length, and numbers.
func eachField(message []byte, visit func(field protowire.Number, value []byte, number uint64) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		var value []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(field, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := visit(field, value, number); err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}

// plainBytes passes messages as they are: a few calls need no generated code.
type plainBytes struct{}

// Name implements encoding.Codec.
func (plainBytes) Name() string { return "proto" }

// Marshal implements encoding.Codec.
func (plainBytes) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("message of type %T", v)
	}
	return b, nil
}

// Unmarshal implements encoding.Codec.
func (plainBytes) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("message of type %T", v)
	}
	*b = slices.Clone(data)
	return nil
}
