package agent

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// enrollTimeout bounds one join at one gateway, which itself gives up after 60 s.
const enrollTimeout = 65 * time.Second

// EnrollConfig says where to join and whom to trust there.
type EnrollConfig struct {
	// Gateways are "host:port" of UDP sockets, tried in order.
	Gateways []string
	// CAPin is the pin of the cluster's CA from the join token: the first 32 hex
	// characters of the SHA-256 of its PKIX public key.
	CAPin string
	// RootCAs may be set in place of CAPin where the CA itself is known.
	RootCAs *x509.CertPool
	// ListenPacket, DialStream, Proxy and Transport as in Config.
	ListenPacket func() (net.PacketConn, error)
	DialStream   func(ctx context.Context, network, addr string) (net.Conn, error)
	Proxy        func(hostport string) (*url.URL, error)
	Transport    Transport
}

var (
	// ErrPin: a gateway did not prove to belong to the cluster of the pin.
	ErrPin = errors.New("gateway does not prove to belong to the cluster named by the token")
	// ErrRateLimited: the gateway had too many joins; the same request may be
	// sent again in a minute.
	ErrRateLimited = errors.New("gateway has too many joins at the moment")
)

// Enroll sends req to the first gateway that answers. The token is sent only
// after the gateway has proven to belong to the cluster of the pin. A refusal is
// returned as the *enroll.RemoteError in it; the next gateway would say the same.
// Errors hold nothing of the token.
func Enroll(ctx context.Context, cfg EnrollConfig, req enroll.Request) (enroll.Response, error) {
	if len(cfg.Gateways) == 0 {
		return enroll.Response{}, errors.New("join: no gateways")
	}
	if (cfg.CAPin == "") == (cfg.RootCAs == nil) {
		return enroll.Response{}, errors.New("join: exactly one of CAPin and RootCAs is needed")
	}
	var errs []error
	for _, gw := range cfg.Gateways {
		resp, err := enrollAt(ctx, gw, cfg, req)
		if err == nil {
			return resp, nil
		}
		err = fmt.Errorf("join through gateway %s: %w", gw, err)
		if _, refused := errors.AsType[*enroll.RemoteError](err); refused {
			return enroll.Response{}, err
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return enroll.Response{}, errors.Join(errs...)
}

func enrollAt(ctx context.Context, gateway string, cfg EnrollConfig, req enroll.Request) (enroll.Response, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: tunnel.ServerName,
		NextProtos: []string{tunnel.JoinALPN},
		RootCAs:    cfg.RootCAs,
	}
	if cfg.CAPin != "" {
		// The CA is not known yet, only its key's hash: verifyPinned does what
		// the standard verification would, with the CA that the gateway shows.
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = func(cs tls.ConnectionState) error { return verifyPinned(cs.PeerCertificates, cfg.CAPin) }
	}
	resp, err := ask(ctx, gateway, conf, network{dialer{listen: cfg.ListenPacket, stream: cfg.DialStream, proxy: cfg.Proxy}, cfg.Transport}, req)
	if err != nil {
		return enroll.Response{}, err
	}
	if cfg.CAPin != "" {
		if err := checkCA(resp.CACertificate, cfg.CAPin); err != nil {
			return enroll.Response{}, err
		}
	}
	return resp, nil
}

// network is how a connection of one request is made.
type network struct {
	dialer    dialer
	transport Transport
}

// ask sends one request over a connection of its own.
func ask(ctx context.Context, gateway string, conf *tls.Config, via network, req any) (resp enroll.Response, err error) {
	ctx, cancel := context.WithTimeout(ctx, enrollTimeout)
	defer cancel()
	mode, err := ParseTransport(string(via.transport))
	if err != nil {
		return resp, err
	}
	l, err := via.dialer.dial(ctx, gateway, conf, route{transport: mode})
	if err != nil {
		return resp, err
	}
	defer func() {
		l.Close(tunnel.CloseNormal, "")
		err = errors.Join(err, l.release())
	}()
	resp, err = exchange(ctx, l, req)
	if err != nil {
		if closed, ok := errors.AsType[*tunnel.CloseError](l.Err()); ok && closed.Remote {
			err = closed
			if closed.Code == tunnel.CloseRateLimited {
				err = fmt.Errorf("%w: %w", ErrRateLimited, closed)
			}
		}
		return enroll.Response{}, err
	}
	if resp.Error != nil {
		return enroll.Response{}, resp.Error
	}
	return resp, nil
}

// exchange sends the request and reads the response on a stream of its own.
func exchange(ctx context.Context, l *link, req any) (enroll.Response, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return enroll.Response{}, fmt.Errorf("request: %w", err)
	}
	st, err := l.Open()
	if err != nil {
		return enroll.Response{}, err
	}
	defer context.AfterFunc(ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })()
	if err := tunnel.WriteFrame(st, b, enroll.MaxMessage); err != nil {
		return enroll.Response{}, err
	}
	if err := st.CloseWrite(); err != nil {
		return enroll.Response{}, fmt.Errorf("send request: %w", err)
	}
	b, err = tunnel.ReadFrame(st, enroll.MaxMessage)
	if err != nil {
		return enroll.Response{}, fmt.Errorf("await answer: %w", errors.Join(err, ctx.Err()))
	}
	return parseResponse(b)
}

func parseResponse(b []byte) (enroll.Response, error) {
	var resp enroll.Response
	if err := json.Unmarshal(b, &resp); err != nil {
		return enroll.Response{}, fmt.Errorf("answer: %w", err)
	}
	return resp, nil
}

// verifyPinned finds the certificate with the pinned key in the chain that a
// gateway shows, and verifies the gateway's own against it.
func verifyPinned(chain []*x509.Certificate, pin string) error {
	if len(chain) == 0 {
		return fmt.Errorf("%w: it showed no certificate", ErrPin)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain[1:] {
		if !pinMatches(c, pin) {
			between.AddCert(c)
			continue
		}
		// Only the key is pinned; the signature proves the rest of it.
		if err := c.CheckSignatureFrom(c); err != nil {
			return fmt.Errorf("%w: its CA certificate is not signed by the pinned key: %w", ErrPin, err)
		}
		roots.AddCert(c)
		found = true
	}
	if !found {
		return fmt.Errorf("%w: none of the %d certificates it showed has the pinned key", ErrPin, len(chain))
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: tunnel.ServerName, Roots: roots, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPin, err)
	}
	return nil
}

// checkCA refuses an answer whose CA is not the pinned one.
func checkCA(text, pin string) error {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return fmt.Errorf("%w: the answer has no CA certificate", ErrPin)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("%w: CA certificate of the answer: %w", ErrPin, err)
	}
	if !pinMatches(c, pin) {
		return fmt.Errorf("%w: the CA certificate of the answer has another key", ErrPin)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return fmt.Errorf("%w: CA certificate of the answer: %w", ErrPin, err)
	}
	return nil
}

func pinMatches(c *x509.Certificate, pin string) bool {
	return subtle.ConstantTimeCompare([]byte(enroll.Pin(c)), []byte(pin)) == 1
}
