package failover

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/machine"
)

// report is the whole outcome, as JSON has it. Times are nanoseconds.
type report struct {
	Date     string        `json:"date"` // UTC
	Version  string        `json:"version"`
	Command  string        `json:"command"`
	Machine  machine.Facts `json:"machine"`
	Took     time.Duration `json:"took"`
	Load1    float64       `json:"load1"`  // the machine's load average of a minute when it began
	Stolen   float64       `json:"stolen"` // part of the cores' time that the hypervisor gave to others
	RunsEach int           `json:"runsEach"`
	Runs     []run         `json:"runs"`
	// Faults sum the runs up, All of them at last.
	Faults []summary  `json:"faults"`
	All    summary    `json:"all"`
	Load   *loadPhase `json:"load,omitempty"`
	Wire   wire       `json:"wire"`
	// Problems are what must not be; targets that are not met are none.
	Problems []string `json:"problems"`
}

// sumUp fills in what follows from the rest.
func (r *report) sumUp() {
	r.Faults, r.Problems = nil, []string{}
	for _, f := range faults() {
		if one := summarize(f.String(), r.Runs); one.Runs > 0 {
			r.Faults = append(r.Faults, one)
		}
	}
	r.All = summarize("", r.Runs)
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	for i, one := range r.Runs {
		for _, w := range one.Wrong {
			problem("run %d (%s): %s", i+1, one.Fault, w)
		}
	}
	if l := r.Load; l != nil {
		if l.Switches > 0 {
			problem("%d false switches under load", l.Switches)
		}
		for _, w := range l.Wrong {
			problem("under load: %s", w)
		}
	}
	if r.Wire.Wrong > 0 {
		problem("%d packets with a wrong source: %s", r.Wire.Wrong, strings.Join(r.Wire.Examples, "; "))
	}
	if r.Wire.Incomplete != "" {
		problem("packets were missed: %s", r.Wire.Incomplete)
	}
}

// write writes the report where the user wants it.
func (r *report) write(cfg Config) error {
	if cfg.Report != "" {
		if err := document.Replace(cfg.Report, r.markdown()); err != nil {
			return err
		}
	}
	if cfg.JSON {
		return document.WriteJSON(cfg.Out, r)
	}
	var b strings.Builder
	r.writeResult(&b)
	_, err := io.WriteString(cfg.Out, "\n"+b.String())
	return err
}

// notRun says that nothing can be measured here.
func notRun(cfg Config, why error) error {
	if cfg.JSON {
		return document.WriteJSON(cfg.Out, struct {
			NotRun string `json:"notRun"`
		}{why.Error()})
	}
	_, err := fmt.Fprintf(cfg.Out, "NOT RUN: failover: %s\n", strings.ReplaceAll(why.Error(), "\n", "; "))
	return err
}

// printer writes lines as things happen. It ignores errors: who closed the
// output does not want to know more.
type printer struct{ out io.Writer }

func (p *printer) line(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, format+"\n", args...)
}

// run prints what one fault came to.
func (p *printer) run(i, of int, r run) {
	p.line("%*d/%d  %-28s  answered after %s from %v, reset after %s, UDP after %s, back after %s", len(fmt.Sprint(of)), i, of,
		r.Fault, millis(r.First), r.Source, millis(r.Reset), millis(r.UDP), millis(r.Back))
	for _, w := range r.Wrong {
		p.line("      wrong: %s", w)
	}
}

// millis is a time in whole milliseconds; 0 is none.
func millis(d time.Duration) string {
	if d == 0 {
		return "never"
	}
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond)/time.Millisecond)
}
