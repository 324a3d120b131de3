package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// joinTimeout bounds a whole join: signing a certificate takes seconds where
	// the approver has work, and a device tries again after it.
	joinTimeout = 60 * time.Second
	// joinLinger is how long the device may take to read the answer and leave.
	joinLinger = 10 * time.Second
)

// serveJoin serves one join: one stream, one request, one response.
func (g *Gateway) serveJoin(ctx context.Context, sess tunnel.Session) {
	remote := sess.Remote()
	log := g.cfg.Logger.With("remote", remote)
	if g.cfg.Enroller == nil || g.isDraining() {
		sess.Close(tunnel.CloseDenied, "this gateway takes no new devices now")
		return
	}
	if !g.joinRate.allow(remote.Addr(), g.cfg.Clock()) {
		log.Warn("join refused: too many attempts from this address")
		sess.Close(tunnel.CloseRateLimited, "too many join attempts from this address; try again in a minute")
		return
	}
	select {
	case g.joins <- struct{}{}:
		defer func() { <-g.joins }()
	default:
		log.Warn("join refused: too many joins at once")
		sess.Close(tunnel.CloseRateLimited, "too many joins at once; try again in a minute")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	st, err := sess.Accept(ctx)
	if err != nil {
		sess.Close(tunnel.CloseProtocol, "no join request")
		return
	}
	defer context.AfterFunc(ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })()
	req, err := readJoin(st)
	if err != nil {
		log.Warn("join request not understood", "error", err)
		sess.Close(tunnel.CloseProtocol, "join request not understood")
		return
	}
	start := g.cfg.Clock()
	resp := g.cfg.Enroller.Enroll(ctx, req, remote)
	result := "ok"
	if resp.Error != nil {
		result = string(resp.Error.Code) + ": " + resp.Error.Message
	}
	log.Info("join", "name", req.Name, "duration", g.cfg.Clock().Sub(start), "result", result)
	b, err := json.Marshal(resp)
	if err == nil {
		err = tunnel.WriteFrame(st, b, enroll.MaxMessage)
	}
	if err == nil {
		err = st.CloseWrite()
	}
	if err != nil {
		log.Warn("join answer not sent", "name", req.Name, "error", err)
		sess.Close(tunnel.CloseInternal, "join answer not sent")
		return
	}
	// Closing a QUIC connection drops what is still on its way, so the device
	// closes it.
	timer := time.NewTimer(joinLinger)
	defer timer.Stop()
	select {
	case <-sess.Done():
	case <-timer.C:
	case <-ctx.Done():
	}
	sess.Close(tunnel.CloseNormal, "")
}

// errJoinRequest stands for every malformed request: what is in it may be a
// token, so nothing of it is repeated.
var errJoinRequest = errors.New("malformed join request")

// readJoin reads one request.
func readJoin(st interface{ Read([]byte) (int, error) }) (enroll.Request, error) {
	b, err := tunnel.ReadFrame(st, enroll.MaxMessage)
	if err != nil {
		return enroll.Request{}, err
	}
	var req enroll.Request
	if json.Unmarshal(b, &req) != nil || req.Token == "" {
		return enroll.Request{}, errJoinRequest
	}
	return req, nil
}
