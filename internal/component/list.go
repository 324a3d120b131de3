package component

import (
	"context"
	"errors"
	"path/filepath"
)

// States of an entry.
const (
	Present = "present"
	Absent  = "absent"
	Damaged = "damaged"
)

// Status is what the cache has of a component.
type Status struct {
	Component string   `json:"component"`
	Version   string   `json:"version"`
	Platform  string   `json:"platform"`
	State     string   `json:"state"`
	Detail    string   `json:"detail,omitempty"` // what is damaged
	Programs  []string `json:"programs"`
	Sets      string   `json:"sets"`
	Image     string   `json:"image,omitempty"`
	Size      int64    `json:"size"` // bytes on disk, 0 if absent
	Directory string   `json:"directory,omitempty"`
}

// List says what the cache has of a Kubernetes version for the store's platform.
func (s *Store) List(ctx context.Context, version string) ([]Status, error) {
	return s.list(ctx, version, quick)
}

// Verify is List, reading every file and comparing its sha256.
func (s *Store) Verify(ctx context.Context, version string) ([]Status, error) {
	return s.list(ctx, version, full)
}

func (s *Store) list(ctx context.Context, version string, depth depth) ([]Status, error) {
	r, err := lookup(s.opts.releases, version)
	if err != nil {
		return nil, err
	}
	var out []Status
	for _, c := range r.Components {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p, ok := c.platform(s.opts.Platform)
		if !ok {
			continue
		}
		j, err := s.newJob(c, p, c.wanted(All))
		if err != nil {
			return nil, err
		}
		var sets Set
		for set := range c.Programs {
			sets |= set
		}
		st := Status{
			Component: c.Name, Version: c.Version, Platform: p.String(), State: Present,
			Programs: j.programs, Sets: sets.String(), Image: c.Image, Directory: s.dir(j),
		}
		switch err := s.verify(s.dir(j), j.key, depth); {
		case errors.Is(err, errAbsent):
			st.State, st.Directory = Absent, ""
		case err != nil:
			st.State, st.Detail = Damaged, err.Error()
		default:
			m, err := readManifest(filepath.Join(s.dir(j), manifestName))
			if err != nil {
				return nil, err
			}
			for _, f := range m.Files {
				if f.Link == "" {
					st.Size += f.Size
				}
			}
		}
		out = append(out, st)
	}
	return out, nil
}
