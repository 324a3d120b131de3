package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// roamPatience is how long after a change of the network the session's pings
	// have to be answered on the socket there is, which is the quicker way where
	// it works: it has a round trip less and keeps what is known of the path.
	roamPatience = time.Second
	// roamTry is how long one attempt to reach the gateway on a new path goes
	// on. Each sends at once and after 200 ms; quic-go would double that, and a
	// network that has just come back would wait for the next.
	roamTry = 350 * time.Millisecond
	// roamBudget bounds the attempts after one change. An outage that is longer
	// ends with the next change, or the session's own probes.
	roamBudget = 10 * time.Second
)

// roamer moves a QUIC connection to another socket (RFC 9000 section 9). Where
// the address below changes, a socket of the wildcard address follows by itself.
// It does not where something on the way remembers the socket: a NAT or a
// firewall whose entry for it leads to a path that is gone and is kept alive by
// the very packets that should renew it. Another port gets an entry of its own.
//
// It has two sockets and moves from the one to the other and back.
type roamer struct {
	conn         *quic.Conn
	listen       func() (*quic.Transport, error)
	active, idle *quic.Transport // idle is nil until the first move
	path         *quic.Path      // that is active; nil for the first one
}

// roam moves the connection as soon as the gateway answers on a new path.
func (r *roamer) roam(ctx context.Context, nudge func()) error {
	if r.idle == nil {
		tr, err := r.listen()
		if err != nil {
			return err
		}
		r.idle = tr
	}
	path, err := r.conn.AddPath(r.idle)
	if err != nil {
		return fmt.Errorf("add path: %w", err)
	}
	for {
		nudge()
		try, cancel := context.WithTimeout(ctx, roamTry)
		err = path.Probe(try)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil || r.conn.Context().Err() != nil || errors.Is(err, quic.ErrPathClosed) {
			return errors.Join(fmt.Errorf("probe path: %w", err), path.Close())
		}
	}
	if err := path.Switch(); err != nil {
		return errors.Join(fmt.Errorf("switch path: %w", err), path.Close())
	}
	if r.path != nil {
		err = r.path.Close()
	}
	r.path, r.active, r.idle = path, r.idle, r.active
	return err
}

// close frees both sockets; the connection must have been closed.
func (r *roamer) close() error {
	var errs []error
	for _, tr := range []*quic.Transport{r.active, r.idle} {
		if tr != nil {
			errs = append(errs, tr.Close(), ignoreClosed(tr.Conn.Close()))
		}
	}
	return errors.Join(errs...)
}

// roamLoop moves the session after a change of the network, if its path does not
// work any more.
func (s *session) roamLoop(ctx context.Context) {
	if s.sess.roam == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.sess.Done():
			return
		case <-s.changed:
		}
		before := s.sess.stats()
		t := time.NewTimer(roamPatience)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		if s.sess.stats() != before {
			continue
		}
		tries, cancel := context.WithTimeout(ctx, roamBudget)
		err := s.sess.roam(tries, func() { tunnel.Nudge(s.sess.Session) })
		cancel()
		switch {
		case err == nil:
			s.a.counters.migrated()
			s.a.history.Add(s.number, tunnel.EventSocket, "nothing came on the old one")
			s.a.log.Info("session moved to the node's new address", "gateway", s.gateway)
		case ctx.Err() == nil && s.sess.Err() == nil:
			s.a.history.Add(s.number, tunnel.EventFailed, "no other socket: "+err.Error())
			s.a.log.Warn("session not moved after a change of the network", "gateway", s.gateway, "error", err)
		}
	}
}

// openTransport makes the UDP socket of a connection to an address of the family.
func (d *dialer) openTransport(network string) (*quic.Transport, error) {
	var pc net.PacketConn
	var err error
	if d.listen != nil {
		pc, err = d.listen()
	} else {
		// A socket of the wildcard address follows the default route when the
		// node's own address changes.
		pc, err = net.ListenUDP(network, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	return &quic.Transport{Conn: tunnel.WrapPacketConn(pc, d.lost)}, nil
}
