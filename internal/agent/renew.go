package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// RenewConfig says where to renew and with what.
type RenewConfig struct {
	// Gateways are "host:port" of UDP sockets, tried in order.
	Gateways []string
	// RootCAs sign the gateways' certificates.
	RootCAs *x509.CertPool
	// Certificate is the node's present client certificate. It may have ended.
	Certificate func() (*tls.Certificate, error)
	// ListenPacket, DialStream, Proxy and Transport as in Config.
	ListenPacket func() (net.PacketConn, error)
	DialStream   func(ctx context.Context, network, addr string) (net.Conn, error)
	Proxy        func(hostport string) (*url.URL, error)
	Transport    Transport
}

// Renew asks the gateways, one after the other, for successors of the node's
// certificates. It is for a node whose certificate has ended, with which nothing
// else can be asked. A refusal is returned as the *enroll.RemoteError in it, and
// one of a gateway itself as the *tunnel.CloseError.
func Renew(ctx context.Context, cfg RenewConfig, req enroll.RenewRequest) (enroll.Response, error) {
	if len(cfg.Gateways) == 0 || cfg.RootCAs == nil || cfg.Certificate == nil {
		return enroll.Response{}, errors.New("renew certificates: Gateways, RootCAs and Certificate are needed")
	}
	via := network{dialer{listen: cfg.ListenPacket, stream: cfg.DialStream, proxy: cfg.Proxy}, cfg.Transport}
	var errs []error
	for _, gateway := range cfg.Gateways {
		resp, err := ask(ctx, gateway, &tls.Config{
			MinVersion:           tls.VersionTLS13,
			ServerName:           tunnel.ServerName,
			NextProtos:           []string{tunnel.RenewALPN},
			RootCAs:              cfg.RootCAs,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cfg.Certificate() },
		}, via, req)
		if err == nil {
			return resp, nil
		}
		err = fmt.Errorf("renew certificates through gateway %s: %w", gateway, err)
		if refused, ok := errors.AsType[*enroll.RemoteError](err); ok && !refused.Retryable() {
			return enroll.Response{}, err
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return enroll.Response{}, errors.Join(errs...)
}
