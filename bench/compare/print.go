package compare

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// The marks around the part of a document that a run replaces.
const (
	beginMark = "<!-- written by make bench-compare; changes up to the end mark are lost -->"
	endMark   = "<!-- end of what make bench-compare writes -->"
)

// replacePart replaces what is between the marks.
func replacePart(document, part string) (string, error) {
	head, rest, ok := strings.Cut(document, beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", errors.New("it has not both marks between which the rows go: " + beginMark + " and " + endMark)
	}
	return head + beginMark + "\n\n" + part + "\n" + endMark + tail, nil
}

// number is a figure as people read it.
func (f figure) number(v float64) string { return fmt.Sprintf("%.*f", f.digits, v) }

// cell is a row's figure: the median, and the least and the most.
func (w row) cell(f figure) string {
	text := f.number(w.Median)
	if w.Bound {
		text = "at least " + text
	}
	if w.Count > 1 {
		text += fmt.Sprintf(" (%s-%s)", f.number(w.Least), f.number(w.Most))
	}
	if w.Noisy {
		text += " noisy"
	}
	return text
}

// ratio is a row's ratio, and its least and most.
func (w row) ratio() string {
	if w.Ratio == nil {
		return ""
	}
	if w.Ratio.Count == 1 {
		return fmt.Sprintf("%.2fx", w.Ratio.Median)
	}
	return fmt.Sprintf("%.2fx (%.2f-%.2f)", w.Ratio.Median, w.Ratio.Least, w.Ratio.Most)
}

// each calls put for every row, with what it is a figure of.
func (r *result) each(put func(s scenario, f figure, w row)) {
	for _, w := range r.Rows {
		for _, s := range scenarios() {
			for _, f := range s.figures {
				if s.name == w.Scenario && f.name == w.Figure {
					put(s, f, w)
				}
			}
		}
	}
}

// table is the result for a terminal.
func (r *result) table() string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	last := ""
	r.each(func(s scenario, f figure, w row) {
		if s.name != last {
			fmt.Fprintf(t, "%s\n", s.title)
			last = s.name
		}
		fmt.Fprintf(t, "  %s, %s\t%s\t%s\t%s\n", f.title, f.unit, w.Variant, w.cell(f), w.ratio())
	})
	_ = t.Flush() // to memory
	fmt.Fprintf(&b, "\nMedians of %d rounds (least-most), ratios to %s of the same rounds. Small packets: %d/s.\n%s\n",
		r.roundCount(), r.Against, r.Rate, r.conditions())
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "NOT MEASURED: %s\n", p)
	}
	return b.String()
}

// conditions says what it was measured with, in one line.
func (r *result) conditions() string {
	parts := []string{r.Machine.CPU, fmt.Sprintf("%d cores, the gateway on core %d", r.Machine.Cores, r.Core), "Linux " + r.Machine.Kernel, r.Machine.Go}
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		parts = append(parts, name+" "+strings.TrimPrefix(strings.TrimPrefix(r.Versions[name], "iperf "), "nftables "))
	}
	noisy := 0
	for _, s := range r.Samples {
		if s.Noisy {
			noisy++
		}
	}
	return strings.Join(append(parts, fmt.Sprintf("load average %.2f at the start", r.Load1), fmt.Sprintf("%d of %d measurements noisy", noisy, len(r.Samples))), "; ")
}

func (r *result) roundCount() int {
	n := 0
	for _, s := range r.Samples {
		n = max(n, s.Round)
	}
	return n
}

// markdown is the result for docs/benchmarks.md.
func (r *result) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "- Command: `%s`\n- Date: %s\n- Conditions: %s\n\n", r.Command, r.Date, r.conditions())
	fmt.Fprintf(&b, "Medians of %d rounds (least-most), and the ratio to %s in the same rounds (least-most).\nSmall packets leave at %d/s, but for the rows of the most that passed.\n\n", r.roundCount(), r.Against, r.Rate)
	var variants []string
	for _, w := range r.Rows {
		if !slices.Contains(variants, w.Variant) {
			variants = append(variants, w.Variant)
		}
	}
	b.WriteString("| what | unit |")
	for _, v := range variants {
		fmt.Fprintf(&b, " %s |", v)
	}
	b.WriteString("\n| --- | --- |" + strings.Repeat(" --- |", len(variants)) + "\n")
	cells := map[string]string{}
	r.each(func(s scenario, f figure, w row) {
		text := w.cell(f)
		if ratio := w.ratio(); ratio != "" {
			text += ", " + ratio
		}
		cells[s.name+f.name+w.Variant] = text
	})
	for _, s := range scenarios() {
		for _, f := range s.figures {
			line, some := fmt.Sprintf("| %s: %s | %s |", s.title, f.title, f.unit), false
			for _, v := range variants {
				text := cells[s.name+f.name+v]
				line, some = line+" "+text+" |", some || text != ""
			}
			if some {
				b.WriteString(line + "\n")
			}
		}
	}
	if len(r.Problems) > 0 {
		b.WriteString("\nNot measured:\n")
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "- %s\n", p)
		}
	}
	b.WriteString("\n")
	for _, v := range variants {
		fmt.Fprintf(&b, "- `%s`: %s\n", v, variantTitle(v))
	}
	return b.String()
}
