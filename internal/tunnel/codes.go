package tunnel

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// ALPN is the application protocol of a node's session. The number is the
	// major version: what cannot be said with capability bits gets a new one.
	ALPN = "edgetun/1"
	// JoinALPN is the application protocol of a device that joins.
	JoinALPN = "edge-join/1"
	// RenewALPN is the application protocol of a node that renews its
	// certificates with one that has ended.
	RenewALPN = "edge-renew/1"
	// MeshALPN is the application protocol between two gateways.
	MeshALPN = "edge-mesh/1"
	// ServerName is in every gateway's certificate, beside names of its own, so
	// that an agent verifies a gateway the same way under any address.
	ServerName = "edge-gateway"
)

// GatewayName is the DNS name by which a gateway's certificate says which
// gateway it is.
func GatewayName(id string) string { return id + "." + ServerName }

// GatewayID returns the id that a verified gateway certificate names, and ""
// for one that names none or several.
func GatewayID(leaf *x509.Certificate) string {
	var id string
	for _, name := range leaf.DNSNames {
		if s, ok := strings.CutSuffix(name, "."+ServerName); ok && s != "" {
			if id != "" {
				return ""
			}
			id = s
		}
	}
	return id
}

const (
	// AgentDialTimeout bounds a dial at the agent. The kubelet is on loopback
	// and pods are one hop away: what has not answered in 10 s will not, and the
	// apiserver's webhooks give up after 10 s by default.
	AgentDialTimeout = 10 * time.Second
	// GatewayDialTimeout bounds the same dial as seen by the gateway. It is
	// longer, so that the agent's own, better worded answer wins.
	GatewayDialTimeout = 12 * time.Second
	// HelloTimeout bounds the time between a finished handshake and HELLO or
	// WELCOME, and between an accepted stream and its header: two round trips of
	// a very bad link.
	HelloTimeout = 10 * time.Second
)

// CloseCode says why a connection was closed: a QUIC application error code.
type CloseCode uint64

// The reasons to close a connection.
const (
	CloseNormal   CloseCode = 0
	CloseProtocol CloseCode = 1
	// CloseDenied: the certificate is good but the node may not connect.
	CloseDenied CloseCode = 2
	// CloseRevoked: the node was allowed and no longer is.
	CloseRevoked CloseCode = 3
	// CloseSuperseded: a newer session of the same node has taken over.
	CloseSuperseded CloseCode = 4
	// CloseGoingAway: this end stops; connect again, elsewhere if possible.
	CloseGoingAway CloseCode = 5
	// CloseRateLimited: too many attempts from this address; try later.
	CloseRateLimited CloseCode = 6
	CloseInternal    CloseCode = 7
)

var closeNames = [...]string{"closed", "protocol error", "denied", "revoked", "superseded", "going away", "rate limited", "internal error"}

// String implements fmt.Stringer.
func (c CloseCode) String() string {
	if int(c) < len(closeNames) {
		return closeNames[c]
	}
	return fmt.Sprintf("code %d", uint64(c))
}

// CloseError is a connection closed on purpose by one of its ends.
type CloseError struct {
	Code   CloseCode
	Reason string
	// Remote says that the other end closed it.
	Remote bool
}

// Error implements error.
func (e *CloseError) Error() string {
	who := "this end"
	if e.Remote {
		who = "the other end"
	}
	if e.Reason == "" {
		return fmt.Sprintf("tunnel closed by %s: %s", who, e.Code)
	}
	return fmt.Sprintf("tunnel closed by %s: %s: %s", who, e.Code, e.Reason)
}

// ResetCode says why a stream was reset: a QUIC stream error code.
type ResetCode uint64

// The reasons to reset a stream.
const (
	// ResetClosed: the owner closed it without reading to the end.
	ResetClosed ResetCode = 0
	// ResetAborted: the connection carried on it broke.
	ResetAborted ResetCode = 1
	// ResetProtocol: its header made no sense.
	ResetProtocol ResetCode = 2
	// ResetStalled: it held up others because nobody read it.
	ResetStalled ResetCode = 3
)

var resetNames = [...]string{"closed", "aborted", "protocol error", "stalled"}

// String implements fmt.Stringer.
func (c ResetCode) String() string {
	if int(c) < len(resetNames) {
		return resetNames[c]
	}
	return fmt.Sprintf("code %d", uint64(c))
}

// ResetError is what reads and writes return on a stream that one of its ends
// has reset.
type ResetError struct {
	Code ResetCode
	// Remote says that the other end did.
	Remote bool
}

// Error implements error.
func (e *ResetError) Error() string {
	who := "this end"
	if e.Remote {
		who = "the other end"
	}
	return fmt.Sprintf("stream reset by %s: %s", who, e.Code)
}

// ErrStreamLimit is returned by Session.Open when the other end does not allow
// another stream at the moment.
var ErrStreamLimit = errors.New("stream limit of the session reached")
