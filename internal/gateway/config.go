package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// Config is what a gateway needs from its surroundings.
type Config struct {
	// Certificate returns the serving certificate; asked at each handshake, so
	// that a renewed one is used from then on. It has tunnel.ServerName as a DNS
	// name, and the CA's certificate at the end of its chain: a joining device
	// knows nothing but the pin of that. Required.
	Certificate func() (*tls.Certificate, error)
	// ClientCAs sign the certificates of nodes. Required.
	ClientCAs *x509.CertPool
	// Authorize decides whether a node whose certificate has been verified may
	// hold a session. It is asked on every connection and must answer from a
	// cache. Its error text is sent to the node. Required.
	Authorize func(node string, leaf *x509.Certificate) error
	// DialAPIServer connects to the apiserver for a node. Required.
	DialAPIServer func(context.Context) (net.Conn, error)
	// ID is which of the cluster's gateways this is (signed.Gateway.ID); the
	// certificate names it. Empty: the only one, which meshes with none.
	ID string
	// CA signs the list of gateways that SetGateways takes. Required with ID.
	CA *x509.Certificate
	// Policy returns the signed.Policy document of a node from a cache, nil while
	// there is none; nodes are sent it. May be nil.
	Policy func(node string) []byte
	// ListenPeer makes the UDP socket of one connection to another gateway; nil:
	// any port of every address.
	ListenPeer func() (net.PacketConn, error)
	// Enroller serves joins; nil refuses them.
	Enroller Enroller
	// Renewer serves renewals; nil refuses them.
	Renewer enroll.Renewer
	// Routes says where targets are. Required.
	Routes Routes
	// Service returns a ready endpoint of the service at a cluster address, from a
	// cache. The error wraps ErrNoRoute for an address that is no service's. nil:
	// no service is known.
	Service func(addr netip.AddrPort) (endpoint netip.AddrPort, err error)
	// DialLocal reaches egress targets that are neither an edge node nor a pod
	// of one ("tcp", "host:port"); nil refuses them.
	DialLocal func(ctx context.Context, network, addr string) (net.Conn, error)
	// OnSession is told of every session here that becomes its node's current one
	// (connected), of a node that another gateway says it holds, and of a node
	// that no gateway holds any more. Calls come one at a time and in order. May
	// be nil.
	OnSession func(node string, connected bool, at time.Time)
	// OnHeartbeat is told what a node says of itself on its current session, from
	// the goroutine that reads the session: it must not block. May be nil.
	OnHeartbeat func(node string, beat tunnel.Heartbeat)
	// Congestion is how what is sent to nodes answers loss; empty: the default.
	Congestion tunnel.Congestion
	// Logger; nil: slog.Default.
	Logger *slog.Logger
	// Clock tells the time for records and logs; nil: time.Now.
	Clock func() time.Time
	// ProcessorTime is how much of it this process has used so far; 0: not known. By it
	// the gateway knows how many nodes can return at once. Nil: as the system says.
	ProcessorTime func() time.Duration
}

// Enroller takes a device into the cluster. A refusal is in the response.
// remote is the source address of the connection.
type Enroller interface {
	Enroll(ctx context.Context, req enroll.Request, remote netip.AddrPort) enroll.Response
}

// Routes finds the node behind a target, from a cache.
type Routes interface {
	// PodOwner names the node that owns a pod address. The error wraps
	// ErrNoRoute where no node does and ErrAmbiguous where it is not certain
	// which.
	PodOwner(addr netip.Addr) (node string, err error)
	// HasNode reports whether an edge node of that name is declared, connected
	// or not.
	HasNode(name string) bool
}

var (
	// ErrNoRoute: no edge node owns the address.
	ErrNoRoute = errors.New("no edge node owns this address")
	// ErrAmbiguous: more than one edge node may own the address.
	ErrAmbiguous = errors.New("ambiguous address: more than one edge node may own it")
	// ErrNotConnected: the node holds no session.
	ErrNotConnected = errors.New("node is not connected")
	// ErrDraining: the gateway is stopping.
	ErrDraining = errors.New("gateway is draining")
	// ErrClosed: the gateway has stopped.
	ErrClosed = errors.New("gateway is closed")
)

func (c *Config) fill() error {
	switch {
	case c.Certificate == nil:
		return errors.New("gateway: no Certificate")
	case c.ClientCAs == nil:
		return errors.New("gateway: no ClientCAs")
	case c.Authorize == nil:
		return errors.New("gateway: no Authorize")
	case c.DialAPIServer == nil:
		return errors.New("gateway: no DialAPIServer")
	case c.Routes == nil:
		return errors.New("gateway: no Routes")
	case c.ID != "" && c.CA == nil:
		return errors.New("gateway: an ID and no CA")
	}
	if c.ListenPeer == nil {
		c.ListenPeer = func() (net.PacketConn, error) { return net.ListenUDP("udp", nil) }
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.ProcessorTime == nil {
		c.ProcessorTime = processorTime
	}
	if c.OnSession == nil {
		c.OnSession = func(string, bool, time.Time) {}
	}
	if c.OnHeartbeat == nil {
		c.OnHeartbeat = func(string, tunnel.Heartbeat) {}
	}
	return nil
}
