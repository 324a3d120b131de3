//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// listContainers is the call by which a kubelet sees what runs.
const listContainers = "/runtime.v1.RuntimeService/ListContainers"

// Field numbers of k8s.io/cri-api's runtime/v1/api.proto, and the state of a
// container that runs.
const (
	fieldContainers    = 1 // of ListContainersResponse
	fieldContainerID   = 1 // of Container
	fieldContainerMeta = 3
	fieldState         = 6
	fieldCreatedAt     = 7
	fieldMetaName      = 1 // of ContainerMetadata
	stateRunning       = 1
)

// container is one that a container runtime knows.
type container struct {
	id, name string
	running  bool
	created  time.Time
}

// containersAt asks the runtime that serves a socket.
func containersAt(ctx context.Context, socket string) ([]container, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plainBytes{})))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var answer []byte
	if err := conn.Invoke(ctx, listContainers, []byte(nil), &answer); err != nil {
		return nil, fmt.Errorf("list the containers: %w", err)
	}
	var found []container
	err = eachField(answer, func(field protowire.Number, value []byte, _ uint64) error {
		if field != fieldContainers {
			return nil
		}
		c, err := parseContainer(value)
		found = append(found, c)
		return err
	})
	return found, err
}

func parseContainer(message []byte) (c container, err error) {
	err = eachField(message, func(field protowire.Number, value []byte, number uint64) error {
		switch field {
		case fieldContainerID:
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

// plainBytes passes messages as they are: one call needs no generated code.
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
