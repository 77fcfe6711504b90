package report

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sallyport-net/sallyport/bench/chart"
)

// The marks around what is written by program in a document. What is around them is kept.
const (
	beginMark = "<!-- written by make bench-report; changes up to the end mark are lost -->"
	endMark   = "<!-- end of what make bench-report writes -->"
)

// Replace replaces what is between the marks of a document.
func Replace(document, part string) (string, error) {
	head, rest, ok := strings.Cut(document, beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", errors.New("it has not both marks between which the rows go: " + beginMark + " and " + endMark)
	}
	return head + beginMark + "\n\n" + strings.TrimSpace(part) + "\n\n" + endMark + tail, nil
}

// Report is all parts together.
type Report struct{ parts map[string]*Part }

// New puts parts together. Two of one name are an error.
func New(parts []*Part) (*Report, error) {
	r := &Report{parts: map[string]*Part{}}
	for _, p := range parts {
		if r.parts[p.Name] != nil {
			return nil, fmt.Errorf("two parts of the report are called %s", p.Name)
		}
		r.parts[p.Name] = p
	}
	return r, nil
}

func (r *Report) rows() (rows []row) {
	for _, t := range targets() {
		rows = append(rows, t.judge(r.parts))
	}
	return append(rows, strays(r.parts))
}

// Parts are all of them, by name.
func (r *Report) Parts() (list []*Part) {
	for _, name := range slices.Sorted(maps.Keys(r.parts)) {
		list = append(list, r.parts[name])
	}
	return list
}

// maxMissing is how many notes stand below a part's command; all are with its figures.
const maxMissing = 2

// Targets is the table of all targets, in Markdown, and after it what each part was
// measured by.
func (r *Report) Targets() string {
	var b strings.Builder
	b.WriteString("| what | target | ours | beside it | ratio or difference | verdict | part |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, row := range r.rows() {
		b.WriteString("| " + strings.Join(row.cells(), " | ") + " |\n")
	}
	b.WriteString("| 1,000 sandboxes of one worker attached | <= 2 s | [attaching](#attaching-sandboxes) | | | | |\n" +
		"| failover | | [failover.md](failover.md) | | | | |\n")
	b.WriteString("\nThe parts, whose figures are all in [benchmarks/measured.md](benchmarks/measured.md):\n\n")
	for _, p := range r.Parts() {
		fmt.Fprintf(&b, "- `%s`, %s: `%s`, on %s\n", p.Name, p.Date, p.Command, p.Machine)
		for i, text := range p.Missing {
			if i == maxMissing {
				fmt.Fprintf(&b, "  - and %d more such notes\n", len(p.Missing)-i)
				break
			}
			fmt.Fprintf(&b, "  - %s\n", text)
		}
	}
	return b.String()
}

// Table is the same table as text, with its headings first.
func (r *Report) Table() [][]string {
	table := [][]string{{"what", "target", "ours", "beside it", "ratio or difference", "verdict", "part"}}
	for _, row := range r.rows() {
		cells := row.cells()
		for i := range cells {
			cells[i] = plain(cells[i])
		}
		table = append(table, cells)
	}
	return table
}

// plain is a text without the marks of Markdown that are used here.
func plain(text string) string { return strings.NewReplacer("**", "", "`", "").Replace(text) }

// Verdict says in some words how a part stands to its targets, or all of them for an empty
// name, and which it missed.
func (r *Report) Verdict(part string) (verdict string, missing []string) {
	var count [told + 1]int
	for _, row := range r.rows() {
		if part != "" && row.target.part != part {
			continue
		}
		if count[row.verdict]++; row.verdict == missed {
			ours := strings.TrimSpace(row.ours() + " " + row.compared())
			missing = append(missing, plain(fmt.Sprintf("%s: %s; target %s", row.what, ours, row.want)))
		}
	}
	if count[met]+count[missed]+count[unknown] == 0 {
		return "no targets", nil
	}
	verdict = fmt.Sprintf("%d met, %d missed", count[met], count[missed])
	if count[unknown] > 0 {
		verdict += fmt.Sprintf(", %d not measured", count[unknown])
	}
	return verdict, missing
}

// Measured is a document with the figures of all parts.
func (r *Report) Measured() string {
	var b strings.Builder
	b.WriteString("# What was measured\n\nWritten by `make bench-report` from the files beside it; changes are lost. Medians (least-most) and,\nbehind a comma, the ratio to the comparator in the same rounds, or with a sign the difference.\n")
	for _, p := range r.Parts() {
		b.WriteString("\n" + strings.Replace(p.Markdown(), "### ", "## ", 1))
	}
	return b.String()
}

// Ratios is a picture of the targets that are ratios to a comparator, in the order of the
// table.
func (r *Report) Ratios() chart.Bars {
	c := chart.Bars{Title: "Ratios to wireguard-go with nftables: bar and spread, dashed the target"}
	for _, row := range r.rows() {
		if row.by != byRatio || row.value == nil || row.value.Ratio == nil || row.open {
			continue
		}
		text, colour := "at most", 0
		if row.least {
			text, colour = "at least", 2
		}
		c.Bars = append(c.Bars, chart.Bar{
			Name: strings.ReplaceAll(row.what, "`", ""), Value: row.judged.Median, Least: row.judged.Least, Most: row.judged.Most,
			Limit: row.limit, Colour: colour, Text: fmt.Sprintf("%.2fx, %s", row.judged.Median, text),
		})
	}
	return c
}

// Pictures are bars of each figure of a part that has more than one variant.
func (p *Part) Pictures() (list []string) {
	for i := range p.Figures {
		f := &p.Figures[i]
		if len(f.Values) < 2 {
			continue
		}
		c := chart.Bars{Title: f.named(f.What)}
		for k := range f.Values {
			v := &f.Values[k]
			colour := 0
			if isYardstick(v.Variant) {
				colour = 1
			}
			c.Bars = append(c.Bars, chart.Bar{Name: v.Variant, Value: v.Median, Least: v.Least, Most: v.Most, Colour: colour, Text: f.number(v.Median)})
		}
		list = append(list, c.SVG())
	}
	return list
}
