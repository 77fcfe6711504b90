package report

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// gobenchYardstick is the comparator among benchmarks whose names end by whose figure it is.
const gobenchYardstick = "gvisor"

// gobenchOurs begins the names of those that are measured beside it.
const gobenchOurs = "sallyport"

// GoBenchmarks reads what `go test -bench` printed. A figure's ID is the benchmark's name
// and the unit, "EgressEstablished/1k ns/packet". Where a name ends by whose figure it is,
// gvisor or ours, those are variants of one figure, with ratios to gVisor's. Benchmarks that
// ran more than once have a spread. It fails if one failed, or none ran.
func GoBenchmarks(r io.Reader) ([]Figure, error) {
	g := gobench{values: map[string][]float64{}}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if err := g.line(lines.Text()); err != nil {
			return nil, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read benchmarks: %w", err)
	}
	if len(g.figures) == 0 {
		return nil, fmt.Errorf("read benchmarks: there is none")
	}
	for i := range g.figures {
		g.sumUp(&g.figures[i])
	}
	return g.figures, nil
}

// gobench gathers lines.
type gobench struct {
	figures []Figure
	values  map[string][]float64 // by ID and variant
}

func (g *gobench) line(text string) error {
	if strings.HasPrefix(text, "--- FAIL") || strings.HasPrefix(text, "FAIL") || strings.HasPrefix(text, "panic:") {
		return fmt.Errorf("read benchmarks: %s", text)
	}
	f := strings.Fields(text)
	if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
		return nil
	}
	if _, err := strconv.Atoi(f[1]); err != nil {
		return nil // the name alone, before the benchmark has run
	}
	name := strings.TrimPrefix(f[0], "Benchmark")
	if at := strings.LastIndexByte(name, '-'); at > 0 {
		if _, err := strconv.Atoi(name[at+1:]); err == nil {
			name = name[:at] // GOMAXPROCS
		}
	}
	variant := ""
	if head, last, ok := cutLast(name); ok && (last == gobenchYardstick || strings.HasPrefix(last, gobenchOurs)) {
		name, variant = head, last
	}
	for i := 2; i+1 < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return fmt.Errorf("read benchmarks: %s: %w", text, err)
		}
		g.add(name, variant, f[i+1], v)
	}
	return nil
}

func cutLast(name string) (head, last string, ok bool) {
	at := strings.LastIndexByte(name, '/')
	if at < 0 {
		return name, "", false
	}
	return name[:at], name[at+1:], true
}

func (g *gobench) add(name, variant, unit string, v float64) {
	if unit == "B/op" || unit == "ns/op" && v == 0 {
		return // allocs/op says as much, and the benchmark has put another unit in its place
	}
	id := name + " " + unit
	at := slices.IndexFunc(g.figures, func(f Figure) bool { return f.ID == id })
	if at < 0 {
		at = len(g.figures)
		g.figures = append(g.figures, Figure{ID: id, What: name, Unit: unit})
	}
	f := &g.figures[at]
	if _, known := g.values[id+"\n"+variant]; !known {
		f.Values = append(f.Values, Value{Variant: variant})
	}
	g.values[id+"\n"+variant] = append(g.values[id+"\n"+variant], v)
}

// sumUp fills in spreads, ratios, and how many digits say something.
func (g *gobench) sumUp(f *Figure) {
	least := 0.0
	var yardstick float64
	for i := range f.Values {
		v := &f.Values[i]
		v.Spread = SpreadOf(g.values[f.ID+"\n"+v.Variant])
		if v.Median != 0 && (least == 0 || v.Median < least) {
			least = v.Median
		}
		if v.Variant == gobenchYardstick {
			yardstick = v.Median
		}
	}
	switch {
	case least != 0 && least < 1:
		f.Digits = 3
	case least != 0 && least < 10:
		f.Digits = 2
	case least != 0 && least < 100:
		f.Digits = 1
	}
	for i := range f.Values {
		if v := &f.Values[i]; yardstick != 0 && v.Variant != gobenchYardstick {
			ratio := v.Median / yardstick
			v.Ratio = &Spread{1, ratio, ratio, ratio}
		}
	}
}
