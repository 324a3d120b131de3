package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
)

const (
	// MaxQlogTime and MaxQlogBytes bound one recording of a session: an hour finds
	// what comes and goes, and 64 MiB are some 200,000 packets.
	MaxQlogTime  = time.Hour
	MaxQlogBytes = 64 << 20
	// qlogWrite bounds the wait for a reader that does not read.
	qlogWrite = 10 * time.Second
)

// serveQlog records the current session of ?node= for ?for= (a Go duration, at
// most MaxQlogTime) and answers with what it records as it comes; see tunnel.Qlog.
// It ends when the time, the session or the caller does, or with MaxQlogBytes. The
// gateway keeps nothing of it.
func (g *Gateway) serveQlog(w http.ResponseWriter, r *http.Request) {
	node := r.URL.Query().Get("node")
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil || d <= 0 || d > MaxQlogTime {
		http.Error(w, fmt.Sprintf("record for more than 0s and at most %s", MaxQlogTime), http.StatusBadRequest)
		return
	}
	s, l, _, err := g.lookup(node)
	switch {
	case l != nil:
		http.Error(w, fmt.Sprintf("node %s is at gateway %s: ask that one", node, l.id), http.StatusNotFound)
		return
	case err != nil:
		http.Error(w, fmt.Sprintf("node %q: %v", node, err), http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), d)
	defer cancel()
	out := &qlogResponse{w: w, to: http.NewResponseController(w)}
	err = tunnel.Qlog(ctx, s.sess, out, tunnel.QlogOptions{Limit: MaxQlogBytes, Begun: func() {
		s.log.Info("session recorded on request", "for", d)
		// The node's acknowledgement is the first event. A session that cannot send
		// has none, and its end is the first.
		if err := s.control.Send(tunnel.Ping{}); err != nil {
			s.log.Debug("control message not sent", "error", err)
		}
	}})
	switch {
	case err == nil:
	case errors.Is(err, tunnel.ErrQlogFull): // the caller counts
	case out.begun:
		s.log.Warn("recording of the session ended early", "error", err)
		panic(http.ErrAbortHandler) // the caller sees that it did
	case errors.Is(err, tunnel.ErrNoQlog), errors.Is(err, quichook.ErrRecorded):
		http.Error(w, fmt.Sprintf("node %s over %s: %v", node, tunnel.TransportOf(s.sess), err), http.StatusConflict)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// qlogResponse sends what is recorded at once.
type qlogResponse struct {
	w     http.ResponseWriter
	to    *http.ResponseController
	begun bool
}

func (q *qlogResponse) Write(b []byte) (int, error) {
	if !q.begun {
		q.w.Header().Set("Content-Type", "application/qlog+json-seq")
		q.begun = true
	}
	// The server's own bound is for answers that are short.
	if err := q.to.SetWriteDeadline(time.Now().Add(qlogWrite)); err != nil {
		return 0, err
	}
	n, err := q.w.Write(b)
	if err == nil {
		err = q.to.Flush()
	}
	return n, err
}
