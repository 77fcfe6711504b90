package report

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// number is a figure as people read it.
func (f *Figure) number(v float64) string { return fmt.Sprintf("%.*f", f.Digits, v) }

// cell is a value: the median, and the least and the most.
func (f *Figure) cell(v *Value) string {
	text := f.number(v.Median)
	if v.Bound {
		text = "at least " + text
	}
	if v.Count > 1 {
		text += fmt.Sprintf(" (%s-%s)", f.number(v.Least), f.number(v.Most))
	}
	if v.Noisy {
		text += " noisy"
	}
	return text
}

// against is how a value stands beside the comparator's: its ratio, or what it is above it.
// Empty: nobody knows.
func (f *Figure) against(v *Value) string {
	switch {
	case v.Ratio != nil && v.Ratio.Count == 1:
		return fmt.Sprintf("%.2fx", v.Ratio.Median)
	case v.Ratio != nil:
		return fmt.Sprintf("%.2fx (%.2f-%.2f)", v.Ratio.Median, v.Ratio.Least, v.Ratio.Most)
	case v.More != nil && v.More.Count == 1:
		return f.more(v.More.Median)
	case v.More != nil:
		return fmt.Sprintf("%s (%s to %s)", f.more(v.More.Median), f.more(v.More.Least), f.more(v.More.Most))
	}
	return ""
}

// named is what a figure is, with its unit if it has one.
func (f *Figure) named(what string) string {
	if f.Unit == "" {
		return what
	}
	return what + ", " + f.Unit
}

func (f *Figure) more(v float64) string { return fmt.Sprintf("%+.*f", f.Digits, v) }

// Table is the part for a terminal: a line for each value.
func (p *Part) Table() string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	last := ""
	for i := range p.Figures {
		f := &p.Figures[i]
		subject, what, ok := strings.Cut(f.What, ": ")
		if !ok {
			subject, what = "", f.What
		}
		if subject != last && subject != "" {
			fmt.Fprintf(t, "%s\n", subject)
		}
		last = subject
		for k := range f.Values {
			v := &f.Values[k]
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", f.named(what), v.Variant, f.cell(v), f.against(v))
		}
	}
	_ = t.Flush() // to memory
	rows := b.String()
	b.Reset()
	for row := range strings.Lines(rows) { // a row may have nothing in its last columns
		b.WriteString(strings.TrimRight(row, " \n") + "\n")
	}
	fmt.Fprintf(&b, "\n%s", p.Machine)
	for _, c := range p.Conditions {
		b.WriteString("; " + c)
	}
	b.WriteString("\n")
	for _, m := range p.Missing {
		fmt.Fprintf(&b, "NOTE: %s\n", m)
	}
	return b.String()
}

// variants are those of the figures, in order.
func (p *Part) variants() (names []string) {
	known := map[string]bool{}
	for _, f := range p.Figures {
		for _, v := range f.Values {
			if !known[v.Variant] {
				known[v.Variant] = true
				names = append(names, v.Variant)
			}
		}
	}
	return names
}

// Markdown is the part as a section of a document: what it was measured by, and a table
// with a column for each variant.
func (p *Part) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n- Command: `%s`\n- Date: %s\n- Machine: %s\n", p.Title, p.Command, p.Date, p.Machine)
	if len(p.Conditions) > 0 {
		fmt.Fprintf(&b, "- Conditions: %s\n", strings.Join(p.Conditions, "; "))
	}
	names := p.variants()
	b.WriteString("\n| what | unit |")
	rule := "\n| --- | --- |"
	for _, name := range names {
		if name == "" {
			name = "measured"
		}
		b.WriteString(" " + name + " |")
		rule += " --- |"
	}
	b.WriteString(rule + "\n")
	for i := range p.Figures {
		f := &p.Figures[i]
		fmt.Fprintf(&b, "| %s | %s |", f.What, f.Unit)
		for _, name := range names {
			cell := ""
			if _, v := p.find(f.ID, name); v != nil {
				cell = f.cell(v)
				if text := f.against(v); text != "" {
					cell += ", " + text
				}
			}
			b.WriteString(" " + cell + " |")
		}
		b.WriteString("\n")
	}
	for i, m := range p.Missing {
		if i == 0 {
			b.WriteString("\nNot measured, or to be read with care:\n\n")
		}
		fmt.Fprintf(&b, "- %s\n", m)
	}
	for i, name := range names {
		if i == 0 && len(p.Variants) > 0 {
			b.WriteString("\n")
		}
		if title := p.Variants[name]; title != "" {
			fmt.Fprintf(&b, "- `%s`: %s\n", name, title)
		}
	}
	return b.String()
}
