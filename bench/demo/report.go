package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// status is how an expectation fared.
type status string

// The states of an expectation. Only a failed one fails the demo.
const (
	held       status = "held"
	failed     status = "failed"
	impossible status = "not possible here"
)

// result is one line of the report.
type result struct {
	Name     string `json:"name"`
	Expected string `json:"expected"`
	Seen     string `json:"seen"`
	Status   status `json:"status"`
}

// impossibleError says why this machine cannot show something.
type impossibleError struct{ why error }

// Error implements error.
func (e *impossibleError) Error() string { return e.why.Error() }

// Unwrap gives the cause.
func (e *impossibleError) Unwrap() error { return e.why }

// The worlds in which the demo can run.
const (
	worldNamespaces = "namespaces"
	worldLoopback   = "loopback"
	worldNone       = "none"
)

// report is the whole outcome, as JSON has it.
type report struct {
	// World is where it ran: network namespaces of its own, or this machine's
	// loopback, or nowhere. Why says why not in namespaces.
	World   string   `json:"world"`
	Why     string   `json:"why,omitempty"`
	Results []result `json:"results"`
	// Held says that nothing failed.
	Held bool `json:"held"`
	// Failure is what kept the demo from going on.
	Failure string        `json:"failure,omitempty"`
	Took    time.Duration `json:"-"`
	Seconds float64       `json:"seconds"`
	// Logs are the ends of the daemons' logs, if something failed.
	Logs map[string]string `json:"logs,omitempty"`
}

// oneLine is an error that fits into a column.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// count says how many expectations fared so.
func (r *report) count(s status) (n int) {
	for _, x := range r.Results {
		if x.Status == s {
			n++
		}
	}
	return n
}

// writeJSON writes the report as one document.
func writeJSON(out io.Writer, r *report) error {
	r.Seconds = r.Took.Seconds()
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}
