package edgenode

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Live is what a node's daemon answers when it is asked, beside its Status: what
// changes too often to be written to a disk.
type Live struct {
	Link LiveLink `json:"link"`
	// Faults are what would keep the node from going on through a cut and a reboot
	// in it, the gravest first; none: nothing would.
	Faults       []Fault           `json:"faults,omitempty"`
	Collections  []LiveCollection  `json:"collections,omitempty"`
	Certificates []LiveCertificate `json:"certificates,omitempty"`
	// Traffic with the apiserver since the daemon began.
	Traffic LiveTraffic `json:"traffic"`
	// Pods' connections to the apiserver.
	Pods LivePods `json:"pods"`
	// Tunnel is what carries the link; nil before the daemon has one.
	Tunnel *LiveTunnel `json:"tunnel,omitempty"`
	// ReplicaBytes are those of answers that came for the replica.
	ReplicaBytes int64 `json:"replicaBytes"`
}

// LiveLink is the hub's judgement of the way to the apiserver.
type LiveLink struct {
	Online bool      `json:"online"`
	Since  time.Time `json:"since,omitzero"`
	// Reason is why it is cut.
	Reason string `json:"reason,omitempty"`
}

// LiveTunnel is the agent's end of the tunnel; counts are since the daemon began.
// See agent.Figures.
type LiveTunnel struct {
	Transport string `json:"transport,omitempty"`
	// Wanted is the transport that the node's pool says, and Trouble why the
	// session is not over it or is not there.
	Wanted       string            `json:"wanted"`
	Trouble      string            `json:"trouble,omitempty"`
	Fallback     bool              `json:"fallback,omitempty"`
	Sessions     map[string]uint64 `json:"sessions,omitempty"`
	Takeovers    uint64            `json:"takeovers,omitempty"`
	Migrations   uint64            `json:"migrations,omitempty"`
	Dials        []LiveDials       `json:"dials,omitempty"`
	Streams      int               `json:"streams"`
	SendErrors   map[string]uint64 `json:"sendErrors,omitempty"`
	StalledBytes int64             `json:"stalledBytes,omitempty"`
	StallAborts  uint64            `json:"stallAborts,omitempty"`
}

// LiveDials is how many dials of a kind had a result.
type LiveDials struct {
	Kind   string `json:"kind"`
	Result string `json:"result"`
	Count  uint64 `json:"count"`
}

// LiveTraffic is in bytes of TLS records.
type LiveTraffic struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
}

// LivePods counts connections of pods to the apiserver: those that are open, and
// those that were refused since the daemon began because too many were.
type LivePods struct {
	Open    int    `json:"open"`
	Refused uint64 `json:"refused"`
}

// LiveCollection is one part of the node's replica of the API.
type LiveCollection struct {
	Name     string `json:"name"`
	Complete bool   `json:"complete"`
	Objects  int    `json:"objects"`
	Version  string `json:"version"`
	// Bytes of answers and number of requests since the daemon began.
	Bytes    int64 `json:"bytes"`
	Requests int64 `json:"requests"`
	// Heard is when the apiserver last said anything of it: about once a minute of
	// collections of many objects, of others when something changes. Zero: not since
	// the daemon began.
	Heard time.Time `json:"heard,omitzero"`
	// Error is why it is not followed now, though the link is there.
	Error string `json:"error,omitempty"`
}

// LiveCertificate is one that the cluster has signed for the node.
type LiveCertificate struct {
	Name string    `json:"name"`
	File string    `json:"file"`
	Ends time.Time `json:"ends"`
}

// writeMetrics writes what a node says in Prometheus' text format
// (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4).
func writeMetrics(w io.Writer, node string, l Live) error {
	var b strings.Builder
	label := func(pairs ...string) string {
		out := `node="` + node + `"`
		for i := 0; i < len(pairs); i += 2 {
			out += "," + pairs[i] + "=" + strconv.Quote(pairs[i+1])
		}
		return "{" + out + "}"
	}
	metric := func(name, kind, help string, each func(add func(labels string, value any))) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		each(func(labels string, value any) { fmt.Fprintf(&b, "%s%s %v\n", name, labels, value) })
	}
	metric("edge_node_link_online", "gauge", "Whether the apiserver can be reached.", func(add func(string, any)) {
		add(label(), bit(l.Link.Online))
	})
	metric("edge_node_fault", "gauge", "What would keep the node from being without its cluster.", func(add func(string, any)) {
		for _, f := range l.Faults {
			add(label("reason", f.Reason), 1)
		}
	})
	metric("edge_node_apiserver_bytes_total", "counter", "Bytes of TLS exchanged with the apiserver.", func(add func(string, any)) {
		add(label("direction", "sent"), l.Traffic.Sent)
		add(label("direction", "received"), l.Traffic.Received)
	})
	metric("edge_node_pod_connections", "gauge", "Connections of pods to the apiserver.", func(add func(string, any)) {
		add(label(), l.Pods.Open)
	})
	metric("edge_node_pod_connections_refused_total", "counter", "Connections of pods to the apiserver that were refused because too many were open.", func(add func(string, any)) {
		add(label(), l.Pods.Refused)
	})
	metric("edge_node_replica_bytes_total", "counter", "Bytes of answers that came for a collection of the replica.", func(add func(string, any)) {
		for _, c := range l.Collections {
			add(label("collection", c.Name), c.Bytes)
		}
	})
	metric("edge_node_replica_requests_total", "counter", "Requests made for a collection of the replica.", func(add func(string, any)) {
		for _, c := range l.Collections {
			add(label("collection", c.Name), c.Requests)
		}
	})
	metric("edge_node_replica_objects", "gauge", "Objects of a collection of the replica.", func(add func(string, any)) {
		for _, c := range l.Collections {
			add(label("collection", c.Name), c.Objects)
		}
	})
	metric("edge_node_replica_complete", "gauge", "Whether a collection of the replica is whole.", func(add func(string, any)) {
		for _, c := range l.Collections {
			add(label("collection", c.Name), bit(c.Complete))
		}
	})
	metric("edge_node_certificate_end_seconds", "gauge", "When a certificate of the node ends, in Unix time.", func(add func(string, any)) {
		for _, c := range l.Certificates {
			add(label("file", c.File), c.Ends.Unix())
		}
	})
	if l.Tunnel != nil {
		writeTunnel(*l.Tunnel, label, metric)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func bit(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// writeTunnel is writeMetrics for the tunnel.
func writeTunnel(t LiveTunnel, label func(pairs ...string) string, metric func(name, kind, help string, each func(add func(labels string, value any)))) {
	each := func(key string, counts map[string]uint64) func(add func(string, any)) {
		return func(add func(string, any)) {
			for _, name := range slices.Sorted(maps.Keys(counts)) {
				add(label(key, name), counts[name])
			}
		}
	}
	one := func(value any) func(add func(string, any)) {
		return func(add func(string, any)) { add(label(), value) }
	}
	metric("edge_node_tunnel_session", "gauge", "What carries the session to the gateway; no series without one.", func(add func(string, any)) {
		if t.Transport != "" {
			add(label("transport", t.Transport), 1)
		}
	})
	metric("edge_node_tunnel_wanted", "gauge", "What the node's pool wants the session carried by.", func(add func(string, any)) {
		add(label("transport", t.Wanted), 1)
	})
	metric("edge_node_tunnel_fallback", "gauge", "Whether the session is over TCP because UDP does not get through.", one(bit(t.Fallback)))
	metric("edge_node_tunnel_sessions_total", "counter", "Sessions that began.", each("transport", t.Sessions))
	metric("edge_node_tunnel_takeovers_total", "counter", "Sessions that took over from one at another gateway or over the other transport.", one(t.Takeovers))
	metric("edge_node_tunnel_migrations_total", "counter", "Moves of a session to another socket after the network had changed.", one(t.Migrations))
	metric("edge_node_tunnel_dials_total", "counter", "Dials of the apiserver by this node, and of all else through the gateway.", func(add func(string, any)) {
		for _, d := range t.Dials {
			add(label("kind", d.Kind, "result", d.Result), d.Count)
		}
	})
	metric("edge_node_tunnel_streams", "gauge", "Connections carried.", one(t.Streams))
	metric("edge_node_tunnel_send_errors_total", "counter", "Packets that a send error lost.", each("errno", t.SendErrors))
	metric("edge_node_tunnel_stalled_bytes", "gauge", "What connections that nobody reads may hold.", one(t.StalledBytes))
	metric("edge_node_tunnel_stall_aborts_total", "counter", "Connections that were cut because nobody read them while others needed what they held.", one(t.StallAborts))
}
