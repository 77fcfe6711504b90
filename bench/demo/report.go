package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
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

// report is the whole outcome, as JSON has it.
type report struct {
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

// printer writes results as they come.
type printer struct {
	out            io.Writer
	terminal       bool // colours, and a line that says what is waited for
	name, expected int  // widths of columns
}

// The control sequences of ECMA-48 that are used.
const (
	green, red, yellow, dim, plain = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
	clearLine                      = "\r\x1b[K"
)

// newPrinter measures what will be printed.
func newPrinter(out io.Writer, terminal bool, checks []check) *printer {
	p := &printer{out: out, terminal: terminal, name: len("what"), expected: len("expected")}
	for _, c := range checks {
		p.name = max(p.name, utf8.RuneCountInString(c.name))
		p.expected = max(p.expected, utf8.RuneCountInString(c.expected))
	}
	return p
}

// header prints the names of the columns.
func (p *printer) header() {
	p.clear()
	p.write(p.paint(dim, fmt.Sprintf("  %s  %s  %s", pad("what", p.name), pad("expected", p.expected), "seen")) + "\n")
}

// waiting says on a terminal what is going on.
func (p *printer) waiting(what string) {
	if p.terminal {
		p.write(clearLine + dim + "… " + what + plain)
	}
}

// result prints a line.
func (p *printer) result(r result) {
	p.clear()
	mark, seen := p.paint(green, "✓"), r.Seen
	switch r.Status {
	case failed:
		mark = p.paint(red, "✗")
	case impossible:
		mark, seen = p.paint(yellow, "–"), "not possible here: "+seen
	}
	p.write(fmt.Sprintf("%s %s  %s  %s\n", mark, pad(r.Name, p.name), pad(r.Expected, p.expected), seen))
}

// end prints what all of it means.
func (p *printer) end(r *report) {
	p.clear()
	for _, name := range slices.Sorted(maps.Keys(r.Logs)) {
		p.write(fmt.Sprintf("\nthe end of %s's log:\n%s", name, r.Logs[name]))
	}
	if r.Failure != "" {
		p.write("\n" + p.paint(red, "the demo could not go on: ") + r.Failure + "\n")
	}
	p.write(fmt.Sprintf("\n%d held, %d failed, %d not possible here, in %.1f s\n",
		r.count(held), r.count(failed), r.count(impossible), r.Took.Seconds()))
}

func (p *printer) clear() {
	if p.terminal {
		p.write(clearLine)
	}
}

func (p *printer) paint(colour, text string) string {
	if !p.terminal {
		return text
	}
	return colour + text + plain
}

// write ignores errors: who closed the output does not want to know more.
func (p *printer) write(s string) { _, _ = io.WriteString(p.out, s) }

// pad fills up to a width in characters.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
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
