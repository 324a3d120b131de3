package edgenode

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Progress is one line that `edge node up` and `edge node down` print.
type Progress struct {
	Phase     string `json:"phase"`
	Message   string `json:"message"`
	ElapsedMS int64  `json:"elapsed_ms"`
}

// Failure is the last line of a run that failed: what failed on which object,
// and what to do next.
type Failure struct {
	Error string `json:"error"`
	Next  string `json:"next,omitempty"`
}

// NextError is an error that knows what the user should do next.
type NextError struct {
	Err  error
	Next string
}

// Error implements error.
func (e *NextError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *NextError) Unwrap() error { return e.Err }

// Reporter prints progress, a line each: as JSON, or as people read it.
type Reporter struct {
	mu    sync.Mutex // guards w
	w     io.Writer
	now   func() time.Time
	start time.Time
	text  bool
}

// NewReporter reports to w; elapsed times count from now.
func NewReporter(w io.Writer, now func() time.Time) *Reporter {
	return &Reporter{w: w, now: now, start: now()}
}

// NewTextReporter is NewReporter for people: "  0.9s  running  the node is up".
func NewTextReporter(w io.Writer, now func() time.Time) *Reporter {
	r := NewReporter(w, now)
	r.text = true
	return r
}

// Say prints one line of progress. Output that cannot be written is lost: the
// work matters more than its report.
func (r *Reporter) Say(phase, message string) {
	elapsed := r.now().Sub(r.start)
	if r.text {
		r.write(fmt.Appendf(nil, "%8.1fs  %-14s  %s\n", elapsed.Seconds(), phase, message))
		return
	}
	r.print(Progress{Phase: phase, Message: message, ElapsedMS: elapsed.Milliseconds()})
}

// Fail prints the last line of a run that failed, as JSON: only programs read it.
func (r *Reporter) Fail(f Failure) { r.print(f) }

func (r *Reporter) print(v any) {
	data, err := json.Marshal(v)
	if err != nil {
		return // plain strings and numbers always marshal
	}
	r.write(append(data, '\n'))
}

func (r *Reporter) write(line []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = r.w.Write(line)
}
