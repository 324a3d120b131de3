package gateway

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// serveRenew serves one renewal: one stream, one request, one response. The chain
// is the client's, of which the handshake has proven that it holds the key and
// nothing else: an ended certificate is good for this and for nothing else.
func (g *Gateway) serveRenew(ctx context.Context, sess tunnel.Session, chain []*x509.Certificate) {
	remote := sess.Remote()
	log := g.cfg.Logger.With("remote", remote)
	if g.cfg.Renewer == nil || g.isDraining() {
		sess.Close(tunnel.CloseDenied, "this gateway renews no certificates now")
		return
	}
	if !g.joinRate.allow(source(remote.Addr()), g.cfg.Clock()) {
		log.Warn("renewal refused: too many attempts from this address")
		sess.Close(tunnel.CloseRateLimited, "too many attempts from this address; try again in a minute")
		return
	}
	node, leaf, err := renewable(chain, g.cfg.ClientCAs, g.cfg.Clock())
	if err == nil {
		log = log.With("node", node)
		err = g.cfg.Authorize(node, leaf)
	}
	if err != nil {
		log.Warn("renewal refused", "error", err)
		sess.Close(tunnel.CloseDenied, err.Error())
		return
	}
	var alone sync.WaitGroup
	defer alone.Wait()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	st, req, err := acceptRequest(ctx, sess, &alone, readRenewal)
	if st == nil {
		sess.Close(tunnel.CloseProtocol, "no renewal request")
		return
	}
	defer context.AfterFunc(ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })()
	if err != nil {
		log.Warn("renewal request not understood", "error", err)
		sess.Close(tunnel.CloseProtocol, "renewal request not understood")
		return
	}
	select {
	case g.joins <- struct{}{}:
	default:
		log.Warn("renewal refused: too many at once")
		sess.Close(tunnel.CloseRateLimited, "too many renewals at once; try again in a minute")
		return
	}
	start := g.cfg.Clock()
	resp := g.cfg.Renewer.Renew(ctx, node, leaf, req, remote)
	<-g.joins
	result := "ok"
	if resp.Error != nil {
		result = string(resp.Error.Code) + ": " + resp.Error.Message
	}
	log.Info("renewal", "ended", leaf.NotAfter, "duration", g.cfg.Clock().Sub(start), "result", result)
	g.reply(ctx, sess, st, resp, log)
}

// renewable returns the node that a certificate is for which is a good one at the
// time, or was when it ended and has not been ended for too long.
func renewable(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) (node string, leaf *x509.Certificate, err error) {
	node, leaf, err = nodeOf(chain)
	if err != nil {
		return "", nil, err
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	at := now
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", nil, fmt.Errorf("client certificate: %w", err)
	}
	return node, leaf, enroll.CheckRenewable(leaf, now)
}

var errRenewRequest = errors.New("malformed renewal request")

// readRenewal reads one request.
func readRenewal(st interface{ Read([]byte) (int, error) }) (enroll.RenewRequest, error) {
	b, err := tunnel.ReadFrame(st, enroll.MaxMessage)
	if err != nil {
		return enroll.RenewRequest{}, err
	}
	var req enroll.RenewRequest
	if json.Unmarshal(b, &req) != nil || req.NodeCSR == "" || req.HubCSR == "" {
		return enroll.RenewRequest{}, errRenewRequest
	}
	return req, nil
}
