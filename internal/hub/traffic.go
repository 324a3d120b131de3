package hub

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// Traffic is what has crossed the link to the apiserver since the hub began, in
// bytes of TLS records: requests of the hub, of components and of pods, and their
// answers.
type Traffic struct {
	// Sent to the apiserver.
	Sent int64 `json:"sent"`
	// Received from it.
	Received int64 `json:"received"`
}

// traffic counts it.
type traffic struct{ sent, received atomic.Int64 }

// Traffic tells what the node has exchanged with the apiserver.
func (h *Hub) Traffic() Traffic {
	return Traffic{Sent: h.carried.sent.Load(), Received: h.carried.received.Load()}
}

// counted is dial with every byte counted.
func (t *traffic) counted(dial func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		counted := &countedConn{Conn: c, traffic: t}
		switch c := c.(type) {
		case watchedStream:
			return &countedStream{watchedStream: c, counted: counted}, nil
		case closeWriter:
			return &countedHalf{countedConn: counted, half: c}, nil
		}
		return counted, nil
	}
}

type closeWriter interface{ CloseWrite() error }

// watchedStream is a stream of a session of the tunnel.
type watchedStream interface {
	tunnel.Stream
	// Stalls looks after the session's streams that nobody reads.
	Stalls() *tunnel.Stalls
}

type countedConn struct {
	net.Conn
	traffic *traffic
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.traffic.received.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.traffic.sent.Add(int64(n))
	return n, err
}

// countedHalf is one whose sending side can be ended by itself.
type countedHalf struct {
	*countedConn
	half closeWriter
}

func (c *countedHalf) CloseWrite() error { return c.half.CloseWrite() }

// countedStream is one that is a stream.
type countedStream struct {
	watchedStream
	counted *countedConn
}

func (c *countedStream) Read(p []byte) (int, error)  { return c.counted.Read(p) }
func (c *countedStream) Write(p []byte) (int, error) { return c.counted.Write(p) }
