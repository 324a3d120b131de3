package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are a gateway's own counters. What can be read off its state is
// collected when somebody asks; see collect.
type metrics struct {
	handshakes   *prometheus.CounterVec // by transport and outcome
	sessions     *prometheus.CounterVec // begun, by how and transport
	refused      *prometheus.CounterVec // by reason
	ended        *prometheus.CounterVec // by reason and transport
	superseded   prometheus.Counter
	migrations   prometheus.Counter
	dialSeconds  *prometheus.HistogramVec // by kind
	dials        *prometheus.CounterVec   // by kind, transport and result
	bytes        *prometheus.CounterVec   // by kind and direction
	inFlight     *prometheus.GaugeVec     // dials, by kind
	joins        *prometheus.CounterVec   // by result
	sendErrors   *prometheus.Desc
	heldSessions *prometheus.Desc
	peers        *prometheus.Desc
	farNodes     *prometheus.Desc
	windows      *prometheus.Desc
	windowLimit  *prometheus.Desc
	stalled      *prometheus.Desc
	stalledLimit *prometheus.Desc
	stallCuts    *prometheus.Desc
}

const namespace = "edge_gateway"

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	m := &metrics{
		handshakes: counter("handshakes_total", "Handshakes by what became of them: begun, done, validated (the address had to prove itself first), refused (too many at the moment; no work was done). Those begun and not done failed or are under way.", "transport", "outcome"),
		sessions:   counter("sessions_begun_total", "Sessions that became their node's newest: new, or superseding an older one here.", "how", "transport"),
		refused:    counter("sessions_refused_total", "Sessions that were refused after the handshake.", "why"),
		ended:      counter("sessions_ended_total", "Sessions that ended, by why: what one end said as it closed, lost (nothing was heard) or broken.", "why", "transport"),
		superseded: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "sessions_superseded_total",
			Help: "Sessions that a newer epoch of their node took over from, here or at another gateway."}),
		migrations: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "migrations_total",
			Help: "Address changes of sessions, as far as they were seen at a control message."}),
		dialSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "dial_seconds",
			Help: "From a dial's begin to the node's answer.",
			// From a LAN's round trip to the bound of a dial.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 12}}, []string{"kind"}),
		dials: counter("dials_total", "Dials by kind, by what carried them from here (quic, tcp, mesh: to another gateway, none: outside of the tunnel, empty: they got nowhere), and result.", "kind", "transport", "result"),
		bytes: counter("carried_bytes_total", "Bytes carried, as seen from who dialled.", "kind", "direction"),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "dials_in_flight",
			Help: "Dials and carried connections at the moment."}, []string{"kind"}),
		joins:        counter("joins_total", "Joins by result.", "result"),
		sendErrors:   desc("send_errors_total", "Packets that a send error lost.", "errno"),
		heldSessions: desc("sessions", "Sessions at the moment; over tcp are those whose network lets no UDP through, or that were told to.", "state", "transport"),
		peers:        desc("mesh_links", "Connections to other gateways.", "gateway"),
		farNodes:     desc("mesh_nodes", "Nodes that another gateway says it holds.", "gateway"),
		windows:      desc("window_growth_bytes", "By how much receive windows have grown beyond what every session has (TCP; those of QUIC do not)."),
		windowLimit:  desc("window_growth_limit_bytes", "By how much they may, all sessions together."),
		stalled:      desc("stalled_bytes", "What connections that nobody reads may hold at the moment."),
		stalledLimit: desc("stalled_limit_bytes", "What they may hold, all sessions together, before the longest stalled are cut."),
		stallCuts:    desc("stall_aborts_total", "Connections that were cut because nobody read them while others needed what they held."),
	}
	for _, kind := range append(slices.Clone(carriedKinds), localKind) {
		m.inFlight.WithLabelValues(kind) // none is a figure too
	}
	return m
}

// carriedKinds are the kinds of connections that sessions carry.
var carriedKinds = []string{tunnel.KindKubelet.String(), tunnel.KindTCP.String(), tunnel.KindAPIServer.String()}

// Describe implements prometheus.Collector.
func (g *Gateway) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(g, ch) }

// Collect implements prometheus.Collector: the gateway's figures without any
// label that names a node.
func (g *Gateway) Collect(ch chan<- prometheus.Metric) {
	m := g.metrics
	for _, c := range []prometheus.Collector{m.handshakes, m.sessions, m.refused, m.ended, m.superseded, m.migrations, m.dialSeconds, m.dials, m.bytes, m.inFlight, m.joins} {
		c.Collect(ch)
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	type held struct{ state, transport string }
	sessions := map[held]int{}
	for _, state := range []string{stateCurrent, stateSuperseded} {
		for _, over := range []string{tunnel.OverQUIC, tunnel.OverTCP} {
			sessions[held{state, over}] = 0
		}
	}
	g.mu.Lock()
	for s := range g.all {
		sessions[held{stateOf(g.current[s.node] != s), tunnel.TransportOf(s.sess)}]++
	}
	g.mu.Unlock()
	for h, n := range sessions {
		gauge(m.heldSessions, n, h.state, h.transport)
	}
	gauge(m.windows, int(g.budget.Used()))
	gauge(m.windowLimit, int(g.budget.Limit()))
	gauge(m.stalled, int(g.stalled.Held()))
	gauge(m.stalledLimit, int(g.stalled.Limit()))
	ch <- prometheus.MustNewConstMetric(m.stallCuts, prometheus.CounterValue, float64(g.stalled.Cuts()))
	links, nodes := map[string]int{}, map[string]int{}
	for _, p := range g.Peers() {
		links[p.ID]++
		nodes[p.ID] = max(nodes[p.ID], p.Nodes)
	}
	for id, n := range links {
		gauge(m.peers, n, id)
		gauge(m.farNodes, nodes[id], id)
	}
	for errno, n := range g.lost.Counts() {
		ch <- prometheus.MustNewConstMetric(m.sendErrors, prometheus.CounterValue, float64(n), tunnel.ErrnoName(errno))
	}
}

// States of a session as they are shown.
const (
	stateCurrent    = "current"
	stateSuperseded = "superseded"
)

func stateOf(superseded bool) string {
	if superseded {
		return stateSuperseded
	}
	return stateCurrent
}

// nodeCollector is what is known of each node's session: ten thousand nodes make
// a hundred thousand series, so that it is asked for separately.
type nodeCollector struct{ g *Gateway }

var (
	nodeLabels = []string{"node"}
	nodeDescs  = struct{ rtt, minRTT, window, sent, received, packets, lost, streams, since, epoch *prometheus.Desc }{
		rtt:      nodeDesc("rtt_seconds", "Smoothed round trip time."),
		minRTT:   nodeDesc("min_rtt_seconds", "Shortest round trip time."),
		window:   nodeDesc("congestion_window_bytes", "Congestion window towards the node."),
		sent:     nodeDesc("sent_bytes", "Bytes sent to the node, retransmissions included."),
		received: nodeDesc("received_bytes", "Bytes received from the node."),
		packets:  nodeDesc("sent_packets", "Packets sent to the node."),
		lost:     nodeDesc("lost_packets", "Packets to the node that were lost."),
		streams:  prometheus.NewDesc("edge_node_streams", "Carried connections.", []string{"node", "kind"}, nil),
		since:    nodeDesc("session_start_seconds", "When the session began, in Unix time."),
		epoch:    prometheus.NewDesc("edge_node_session", "The node's sessions: transport, congestion control, remote address, epoch.", []string{"node", "transport", "congestion", "remote", "epoch", "state"}, nil),
	}
)

func nodeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("edge_node_"+name, help, nodeLabels, nil)
}

// Describe implements prometheus.Collector.
func (c nodeCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c nodeCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.g.Sessions() {
		ch <- prometheus.MustNewConstMetric(nodeDescs.epoch, prometheus.GaugeValue, 1,
			s.Node, s.Stats.Transport, string(s.Congestion), s.Remote.String(), time.Unix(0, int64(s.Epoch)).UTC().Format(time.RFC3339Nano), stateOf(s.Superseded)) //nolint:gosec // an epoch is a time below 2^62
		if s.Superseded {
			continue
		}
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{s.Node}, labels...)...)
		}
		gauge(nodeDescs.sent, float64(s.Stats.Sent))
		gauge(nodeDescs.received, float64(s.Stats.Received))
		gauge(nodeDescs.since, float64(s.Since.UnixMilli())/1000)
		for _, kind := range carriedKinds {
			gauge(nodeDescs.streams, float64(s.Kinds[kind]), kind)
		}
		if s.Stats.RTT > 0 { // over TCP it is not known at first
			gauge(nodeDescs.rtt, s.Stats.RTT.Seconds())
		}
		if s.Stats.Transport != tunnel.OverQUIC {
			continue // the kernel knows the rest, and a zero would say that nothing is lost
		}
		gauge(nodeDescs.minRTT, s.Stats.MinRTT.Seconds())
		gauge(nodeDescs.window, float64(s.Stats.CongestionWindow))
		gauge(nodeDescs.packets, float64(s.Stats.PacketsSent))
		gauge(nodeDescs.lost, float64(s.Stats.PacketsLost))
	}
}

func (m *metrics) handshake(transport, outcome string) {
	m.handshakes.WithLabelValues(transport, outcome).Inc()
}

// endOf is one of few words for why a session ended.
func endOf(err error) string {
	if closed, ok := errors.AsType[*tunnel.CloseError](err); ok {
		if closed.Code > tunnel.CloseInternal {
			return "unknown code" // the other end's choice, of which there are many
		}
		return closed.Code.String()
	}
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.Canceled):
		return tunnel.CloseGoingAway.String() // this gateway stops
	case errors.As(err, &timeout) && timeout.Timeout():
		return "lost"
	}
	return "broken"
}

// dialled counts a dial's end; over is what carried it.
func (m *metrics) dialled(kind, over string, s tunnel.Spliced) {
	kind = kindLabel(kind)
	m.dials.WithLabelValues(kind, over, resultOf(s.Err)).Inc()
	m.bytes.WithLabelValues(kind, "sent").Add(float64(s.AToB))
	m.bytes.WithLabelValues(kind, "received").Add(float64(s.BToA))
}

// kindLabel is the kind of a dial, or one word for all that a node or another
// gateway may make up.
func kindLabel(kind string) string {
	for _, k := range []tunnel.Kind{tunnel.KindTCP, tunnel.KindUDP, tunnel.KindKubelet, tunnel.KindAPIServer, tunnel.KindTun} {
		if kind == k.String() {
			return kind
		}
	}
	if kind == localKind || kind == noKind {
		return kind
	}
	return "unknown"
}

// resultOf is one of few words for how a dial ended.
func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	if se, ok := errors.AsType[*tunnel.StatusError](err); ok {
		if se.Status > tunnel.StatusNotConnected {
			return "unknown status" // the other end's choice, of which there are many
		}
		return se.Status.String()
	}
	switch {
	case errors.Is(err, ErrNotConnected):
		return "not connected"
	case errors.Is(err, ErrDraining), errors.Is(err, ErrClosed):
		return "draining"
	case errors.Is(err, ErrAmbiguous):
		return "ambiguous"
	case errors.Is(err, errRoute), errors.Is(err, ErrNoRoute), errors.Is(err, errNoEndpoint):
		return "no route"
	case errors.Is(err, tunnel.ErrStreamLimit):
		return "stream limit"
	case errors.Is(err, tunnel.ErrStalled):
		return "stalled"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	}
	return "broken"
}

const (
	// adminTimeout bounds a request and its answer: a scrape of ten thousand
	// nodes takes under a second.
	adminTimeout = 30 * time.Second
	// adminHeader bounds a request's header in bytes.
	adminHeader = 8 << 10
)

// ServeAdmin serves over HTTP, on a socket that only operators can open, until
// ctx ends:
//
//	GET /metrics        the gateway's figures, Prometheus text
//	GET /metrics/nodes  each node's
//	GET /sessions       []SessionInfo as JSON
//	GET /peers          []MeshPeer as JSON
//	GET /qlog           records a node's session; see serveQlog
func (g *Gateway) ServeAdmin(ctx context.Context, ln net.Listener) error {
	own, nodes := prometheus.NewRegistry(), prometheus.NewRegistry()
	if err := errors.Join(own.Register(g), nodes.Register(nodeCollector{g})); err != nil {
		return errors.Join(err, ln.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(own, promhttp.HandlerOpts{}))
	mux.Handle("GET /metrics/nodes", promhttp.HandlerFor(nodes, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /sessions", answerJSON(func() any { return g.Sessions() }))
	mux.HandleFunc("GET /peers", answerJSON(func() any { return g.Peers() }))
	mux.HandleFunc("GET /qlog", g.serveQlog)
	server := &http.Server{
		Handler: mux, ReadTimeout: adminTimeout, WriteTimeout: adminTimeout, MaxHeaderBytes: adminHeader,
		ErrorLog: slog.NewLogLogger(g.cfg.Logger.Handler(), slog.LevelWarn),
	}
	return g.serving(ctx, server, func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })
		defer stop()
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

func answerJSON(value func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// A reader that is gone is told nothing.
		_ = json.NewEncoder(w).Encode(value())
	}
}
