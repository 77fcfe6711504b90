package scenario

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/chart"
	"github.com/sallyport-net/sallyport/bench/progress"
	"github.com/sallyport-net/sallyport/internal/console"
)

// cells are the figures of a step as people read them, by their titles in order.
func (s *step) cells() (list [][2]string) {
	for _, f := range figures() {
		if v, ok := s.Figures[f.name]; ok {
			list = append(list, [2]string{f.title, number(v, f.digits)})
		}
	}
	if l := s.Latency; l != nil {
		for _, q := range []struct {
			name  string
			value float64
		}{{"p50, us", l.P50}, {"p99, us", l.P99}, {"p99.9, us", l.P999}, {"max, us", l.Max}} {
			text := number(q.value, 0)
			if q.value == 0 {
				text = "-" // too few values for it
			}
			list = append(list, [2]string{q.name, text})
		}
	}
	return list
}

// short is a step in a few words.
func (s *step) short() (text string) {
	if v, ok := s.Figures[figureRate]; ok {
		text += "  " + progress.Group(v) + "/s"
	} else if v, ok := s.Figures[figureGbps]; ok {
		text += fmt.Sprintf("  %.2f Gbit/s", v)
	}
	if v, ok := s.Figures[figureLoss]; ok {
		text += fmt.Sprintf("  %.3f %% lost", v)
	}
	if s.Latency != nil {
		text += "  p50 " + progress.Group(s.Latency.P50) + " us"
	}
	switch {
	case s.Refused:
		text += "  REFUSED"
	case s.Broken:
		text += "  broken off"
	}
	if len(s.Wrong) > 0 {
		text += "  WRONG"
	}
	return text
}

// number has thousands in groups where it is whole.
func number(v float64, digits int) string {
	if digits == 0 || math.Abs(v) >= 1e5 {
		return progress.Group(v)
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// rows are a table of an outcome: steps, and a column for each figure that one of them has.
func (o *outcome) rows() [][]string {
	head := []string{"step"}
	column := map[string]int{}
	order := figures()
	for _, q := range []string{"p50, us", "p99, us", "p99.9, us", "max, us"} {
		order = append(order, figure{title: q})
	}
	for _, f := range order {
		for _, s := range o.Steps {
			for _, c := range s.cells() {
				if _, known := column[f.title]; c[0] == f.title && !known {
					column[f.title] = len(head)
					head = append(head, f.title)
				}
			}
		}
	}
	rows := [][]string{head}
	for _, s := range o.Steps {
		row := make([]string, len(head))
		if row[0] = s.Name; s.Broken {
			row[0] += " (broken off)"
		}
		for _, c := range s.cells() {
			row[column[c[0]]] = c[1]
		}
		rows = append(rows, row)
	}
	return rows
}

// How notes begin that are plain facts.
const (
	noteLimit  = "LIMIT: "
	noteBeside = "ALSO: "
)

// notes are what is to be known beside the figures, each with its mark.
func (o *outcome) notes() (list []string) {
	if o.NotRun != "" {
		list = append(list, "NOT RUN: "+o.NotRun)
	}
	for _, s := range o.Steps {
		for _, w := range s.Wrong {
			list = append(list, "WRONG: "+s.Name+": "+w)
		}
		if s.Refused {
			list = append(list, "REFUSED: "+s.Name+": its figures are thrown away: "+strings.Join(s.Noise.Why, "; ")+s.still())
		}
		for _, m := range s.Marks {
			list = append(list, "NOTE: "+s.Name+": "+m)
		}
		if s.Limit != nil {
			list = append(list, noteLimit+s.Name+": "+s.Limit.String())
		}
		for _, m := range s.Beside {
			list = append(list, noteBeside+s.Name+": "+m)
		}
	}
	for _, p := range o.Problems {
		list = append(list, "FAILED: "+p)
	}
	return list
}

// print writes the result for a terminal.
func (r *result) print(w io.Writer) error {
	var b strings.Builder
	for _, o := range r.Scenarios {
		fmt.Fprintf(&b, "\n%s: %s\n", o.Name, o.Title)
		if len(o.Steps) > 0 {
			var t console.Table
			for _, row := range o.rows() {
				cells := make([]any, len(row))
				for i, c := range row {
					cells[i] = c
				}
				t.Row(cells...)
			}
			var text strings.Builder
			_ = t.Print(&text) // to memory
			for line := range strings.Lines(text.String()) {
				b.WriteString("  " + line)
			}
		}
		for _, n := range o.notes() {
			b.WriteString("  " + console.Clean(n) + "\n")
		}
	}
	b.WriteString("\nVerdict: " + console.Clean(r.verdict()+"\n"+strings.Join(r.conditions(), "\n")) + "\n")
	for _, p := range r.Problems {
		b.WriteString("FAILED: " + console.Clean(p) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// conditions say what was measured, with what, and how sources were checked.
func (r *result) conditions() []string {
	g := r.Gateway
	what := "Gateway: " + g.Kind
	if g.Uplink != "" {
		what += ", uplink " + g.Uplink
	}
	if g.Endpoint.IsValid() {
		what += fmt.Sprintf(", at %v", g.Endpoint)
	} else {
		what += ", not reached"
	}
	if g.Far.IsValid() {
		what += fmt.Sprintf("; far side %v", g.Far)
	}
	what += "; CPU: " + g.CPU
	checked, wrong, some := true, uint64(0), false
	for _, o := range r.Scenarios {
		for _, s := range o.Steps {
			if s.Sources != nil {
				some, checked, wrong = true, checked && s.Sources.Checked, wrong+s.Sources.Wrong
			}
		}
	}
	sources := fmt.Sprintf("Source addresses: all of the pair %v", g.Pair)
	switch {
	case !some:
		sources = "Source addresses: none were seen"
	case !checked:
		sources = "Source addresses: not checked, as nobody said what the pair is (--pair)"
	case wrong > 0:
		sources = fmt.Sprintf("Source addresses: %d packets or connections from others than the pair %v", wrong, g.Pair)
	}
	repeats := "Noisy steps: never measured again (--again 0)"
	if a := r.Again; a.Allowed > 0 {
		repeats = fmt.Sprintf("Noisy steps: measured again %d of at most %d times (--again)", a.Used, a.Allowed)
	}
	return []string{
		what, sources, repeats,
		fmt.Sprintf("Harness: %s; %d cores; Linux %s; %s; sallyport-bench %s; load average %.2f at the start; %s; %.0f s",
			r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Go, r.Sallyport, r.Load1, r.Date.Format(time.DateTime+" UTC"), r.Seconds),
		"Command: " + r.Command,
	}
}

// charts are what a scenario's figures look like.
func (o *outcome) charts() (list []chart.Chart) {
	quantiles := chart.Chart{Title: o.Title + ": latency", X: chart.Axis{Label: "of all", Scale: chart.Quantile}, Y: chart.Axis{Label: "us", Scale: chart.Log}}
	scale := chart.Chart{Title: o.Title, X: chart.Axis{Label: o.scale(), Scale: chart.Log}, Y: chart.Axis{Label: "us of CPU per packet"}}
	over := map[string]*chart.Chart{}
	var units []string
	process, core := chart.Series{Name: "process", Dots: true}, chart.Series{Name: "core", Dots: true}
	largest := 0.0 // a step that is smaller than the one before is another question
	for _, s := range o.Steps {
		if s.Latency != nil {
			quantiles.Series = append(quantiles.Series, chart.Series{Name: s.Name, Points: points(s.Latency.Quantiles)})
		}
		for _, one := range s.Series {
			c := over[one.Unit]
			if c == nil {
				c = &chart.Chart{Title: o.Title + ": " + one.Unit, X: chart.Axis{Label: "s"}, Y: chart.Axis{Label: one.Unit}}
				over[one.Unit], units = c, append(units, one.Unit)
			}
			c.Series = append(c.Series, chart.Series{Name: s.Name + " " + one.Name, Points: points(one.Points)})
		}
		if x := float64(o.size(s)); x > largest {
			largest = x
			if v, ok := s.Figures[figureProcess]; ok {
				process.Points = append(process.Points, chart.Point{X: x, Y: v})
			}
			if v, ok := s.Figures[figureCore]; ok {
				core.Points = append(core.Points, chart.Point{X: x, Y: v})
			}
		}
	}
	for _, u := range units {
		list = append(list, *over[u])
	}
	if len(quantiles.Series) > 0 {
		list = append(list, quantiles)
	}
	for _, one := range []chart.Series{process, core} {
		if len(one.Points) > 0 {
			scale.Series = append(scale.Series, one)
		}
	}
	if len(scale.Series) > 0 {
		list = append(list, scale)
	}
	return list
}

// scale is what a scenario's steps grow in; empty: they do not.
func (o *outcome) scale() string {
	switch o.Name {
	case nameSandboxes:
		return "sandboxes"
	case nameSessions:
		return "sessions"
	}
	return ""
}

func (o *outcome) size(s *step) int {
	switch o.Name {
	case nameSandboxes:
		return s.Load.Sandboxes
	case nameSessions:
		return s.Load.Flows
	}
	return 0
}

func points(pairs [][2]float64) (list []chart.Point) {
	for _, p := range pairs {
		list = append(list, chart.Point{X: p[0], Y: p[1]})
	}
	return list
}

// write writes the result where the user wants it.
func (r *result) write(cfg *Config) error {
	var errs []error
	if cfg.Out != nil {
		errs = append(errs, r.print(cfg.Out))
	}
	errs = append(errs, cfg.output().Write(r, r.whole(cfg)))
	if cfg.HTML != "" {
		errs = append(errs, cfg.pageOutput().WriteText(r.page()))
	}
	return errors.Join(errs...)
}
