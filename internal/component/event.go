package component

import "time"

// EventKind says what an Event reports.
type EventKind string

// The kinds of event.
const (
	// Planned comes once per Ensure before minutes of work begin: Components are
	// to be built, which takes Estimate when nothing of it is in Go's own caches.
	Planned EventKind = "planned"
	// Waiting: another process works on the same entry.
	Waiting EventKind = "waiting"
	// Started: work on a component begins.
	Started EventKind = "started"
	// Progress: Done of Total Units. Total 0 means not known.
	Progress EventKind = "progress"
	// Installed: the component is in the cache.
	Installed EventKind = "installed"
	// Notice: something a person should know, in Message.
	Notice EventKind = "notice"
)

// Units of progress.
const (
	Packages = "packages"
	Bytes    = "bytes"
)

// Event reports progress. Events of several components interleave; the function
// that takes them is never called twice at the same time.
type Event struct {
	Kind       EventKind
	Component  string
	Version    string
	Source     string // "mirror" or "module"
	Message    string // a sentence for a person
	Done       int64
	Total      int64
	Unit       string
	Components []string      // Planned
	Estimate   time.Duration // Planned
	Elapsed    time.Duration // Installed
}
