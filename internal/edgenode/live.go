package edgenode

import (
	"fmt"
	"io"
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

// LiveTraffic is in bytes of TLS records.
type LiveTraffic struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
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
	// Heard is when the apiserver last said anything of it; zero: not since the
	// daemon began.
	Heard time.Time `json:"heard,omitzero"`
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
	bit := func(yes bool) int {
		if yes {
			return 1
		}
		return 0
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
	_, err := io.WriteString(w, b.String())
	return err
}
