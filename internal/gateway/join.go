package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// joinTimeout bounds a whole join: signing a certificate takes seconds where
	// the approver has work, and a device tries again after it.
	joinTimeout = 60 * time.Second
	// joinReadTimeout is how long a device may take to say what it wants: one
	// flight over a bad link.
	joinReadTimeout = 10 * time.Second
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
	if !g.joinRate.allow(source(remote.Addr()), g.cfg.Clock()) {
		log.Warn("join refused: too many attempts from this address")
		sess.Close(tunnel.CloseRateLimited, "too many join attempts from this address; try again in a minute")
		return
	}
	var alone sync.WaitGroup
	defer alone.Wait()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	st, req, err := acceptRequest(ctx, sess, &alone, readJoin)
	if st == nil {
		sess.Close(tunnel.CloseProtocol, "no join request")
		return
	}
	defer context.AfterFunc(ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })()
	if err != nil {
		log.Warn("join request not understood", "error", err)
		sess.Close(tunnel.CloseProtocol, "join request not understood")
		return
	}
	// A place is taken only by what has been read, and given back before the
	// answer is on its way: a stranger who says nothing holds up nobody.
	select {
	case g.joins <- struct{}{}:
	default:
		log.Warn("join refused: too many joins at once")
		sess.Close(tunnel.CloseRateLimited, "too many joins at once; try again in a minute")
		return
	}
	start := g.cfg.Clock()
	resp := g.cfg.Enroller.Enroll(ctx, req, remote)
	<-g.joins
	result := "ok"
	name := req.Name
	if resp.Error != nil {
		result = string(resp.Error.Code) + ": " + resp.Error.Message
		name = "(refused)" // what a stranger typed does not belong into a log
	}
	code := "ok"
	if resp.Error != nil {
		code = string(resp.Error.Code)
	}
	g.metrics.joins.WithLabelValues(code).Inc()
	log.Info("join", "name", name, "duration", g.cfg.Clock().Sub(start), "result", result)
	g.reply(ctx, sess, st, resp, log.With("name", name))
}

// reply sends the response and waits for the device to have read it.
func (g *Gateway) reply(ctx context.Context, sess tunnel.Session, st tunnel.Stream, resp enroll.Response, log *slog.Logger) {
	b, err := json.Marshal(resp)
	if err == nil {
		err = tunnel.WriteFrame(st, b, enroll.MaxMessage)
	}
	if err == nil {
		err = st.CloseWrite()
	}
	if err != nil {
		log.Warn("answer not sent", "error", err)
		sess.Close(tunnel.CloseInternal, "answer not sent")
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

// acceptRequest waits for the stream and its request, within joinReadTimeout. st is
// nil where no stream came.
//
// Until ctx ends, in a goroutine that alone counts, the session is closed when
// another stream comes. Who joins or renews is a stranger, and each stream may make
// the gateway hold a window of what nobody reads. QUIC would admit as many streams
// of a stranger as of a node, because quic-go asks for a connection's limits before
// it knows which protocol the client speaks; over TCP joinStreams is the limit.
func acceptRequest[T any](ctx context.Context, sess tunnel.Session, alone *sync.WaitGroup, read func(interface{ Read([]byte) (int, error) }) (T, error)) (st tunnel.Stream, req T, err error) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, joinReadTimeout)
	defer cancel()
	st, err = sess.Accept(ctx)
	if err != nil {
		return nil, req, err
	}
	alone.Go(func() {
		if _, err := sess.Accept(whole); err == nil {
			sess.Close(tunnel.CloseProtocol, "one request on one stream is all that is served here")
		}
	})
	stop := context.AfterFunc(ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })
	req, err = read(st)
	if stop() {
		return st, req, err
	}
	return st, req, errors.Join(err, ctx.Err())
}

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
