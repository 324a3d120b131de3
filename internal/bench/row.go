package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Row is one result. A row without a peer or an aim is information only.
type Row struct {
	Name string `json:"name"`
	// Unit of Ours, Peer and Aim. Of rates (units with "/s") more is better, of
	// everything else less.
	Unit string `json:"unit"`
	// Ours and Peer are medians, unless the name says otherwise.
	Ours     float64  `json:"ours"`
	Peer     *float64 `json:"peer"`
	PeerName string   `json:"peer_name"`
	// Aim is the worst value that is good enough.
	Aim *float64 `json:"aim"`
	// Met says whether Ours is at least as good as Aim; null without one.
	Met *bool `json:"met"`
}

// Suffixes of the names of rows that give the spread behind another row.
const (
	Fastest = ", fastest round"
	Slowest = ", slowest round"
)

// PhasePrefix begins the names of rows that say where time went.
const PhasePrefix = "phase of "

// With returns the row compared with a peer.
func (r Row) With(peerName string, peer float64) Row {
	r.Peer, r.PeerName = &peer, peerName
	return r
}

// Aiming returns the row judged against an aim.
func (r Row) Aiming(aim float64) Row {
	met := !worse(r.Unit, r.Ours, aim)
	r.Aim, r.Met = &aim, &met
	return r
}

// WorseThanPeer says whether there is a peer and it is better.
func (r Row) WorseThanPeer() bool { return r.Peer != nil && worse(r.Unit, r.Ours, *r.Peer) }

func worse(unit string, a, b float64) bool {
	if strings.Contains(unit, "/s") {
		return a < b
	}
	return a > b
}

// Spread returns the rows of a measurement: its median, and with more than one
// round its best and worst. peer may be empty.
func Spread(name, unit string, ours Sample, peerName string, peer Sample) []Row {
	row := func(name string, of func(Sample) float64) Row {
		r := Row{Name: name, Unit: unit, Ours: of(ours)}
		if len(peer) > 0 {
			r = r.With(peerName, of(peer))
		}
		return r
	}
	rows := []Row{row(name, Sample.Median)}
	if len(ours) > 1 {
		rows = append(rows, row(name+Fastest, Sample.Min), row(name+Slowest, Sample.Max))
	}
	return rows
}

// Write replaces the rows of an area, <dir>/<area>.json.
func Write(path string, rows []Row) error {
	raw, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

// Read reads the rows of an area.
func Read(path string) ([]Row, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read benchmark results: %w", err)
	}
	var rows []Row
	if err := json.Unmarshal(raw, &rows); err != nil {
		return nil, fmt.Errorf("read benchmark results %s: %w", path, err)
	}
	return rows, nil
}
