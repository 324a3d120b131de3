package bench

import (
	"slices"
	"time"
)

// Sample is the values of one measurement, one a round. The zero value is empty.
type Sample []float64

// Add records a duration in seconds.
func (s *Sample) Add(d time.Duration) { *s = append(*s, d.Seconds()) }

// Median of a sample; 0 of an empty one. Of an even number of values it is the
// mean of the middle two.
func (s Sample) Median() float64 {
	if len(s) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(s))
	mid := len(v) / 2
	if len(v)%2 == 1 {
		return v[mid]
	}
	return (v[mid-1] + v[mid]) / 2
}

// Min of a sample; 0 of an empty one.
func (s Sample) Min() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Min(s)
}

// Max of a sample; 0 of an empty one.
func (s Sample) Max() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// Ratios divides each value by the peer's of the same round, as far as both go.
// A round in which the machine was slow is slow for both.
func (s Sample) Ratios(peer Sample) Sample {
	var out Sample
	for i := range min(len(s), len(peer)) {
		if peer[i] > 0 {
			out = append(out, s[i]/peer[i])
		}
	}
	return out
}

// Phase is a named part of a longer time.
type Phase struct {
	Name     string
	Duration time.Duration
}

// Phases collects the phases of several rounds, in the order in which they were
// first seen.
type Phases struct {
	names []string
	times map[string]*Sample
}

// Add records one round.
func (p *Phases) Add(round []Phase) {
	if p.times == nil {
		p.times = map[string]*Sample{}
	}
	for _, ph := range round {
		s, ok := p.times[ph.Name]
		if !ok {
			s = &Sample{}
			p.times[ph.Name] = s
			p.names = append(p.names, ph.Name)
		}
		s.Add(ph.Duration)
	}
}

// Rows returns one row a phase: "phase of <what>: <name>".
func (p *Phases) Rows(what string) []Row {
	var rows []Row
	for _, name := range p.names {
		rows = append(rows, Row{Name: PhasePrefix + what + ": " + name, Unit: "s", Ours: p.times[name].Median()})
	}
	return rows
}
