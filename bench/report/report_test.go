package report

import (
	"strings"
	"testing"
)

func one(v float64) Spread { return Spread{1, v, v, v} }

func samplePart() *Part {
	half, more := one(0.5), Spread{2, -30, -40, 12}
	return &Part{
		Name: "tcp", Title: "TCP", Command: "sallyport-bench compare", Date: "2026-01-31", Machine: "a machine", Conditions: []string{"core 0"},
		Variants: map[string]string{"tun": "ours"},
		Figures: []Figure{
			{ID: "tcp-out/processPerGB", What: "TCP, egress: CPU", Unit: "s/GB", Digits: 2, Values: []Value{
				{Variant: "wireguard-go", Spread: Spread{3, 2, 1, 3}},
				{Variant: "tun", Spread: one(1), Ratio: &half, Noisy: true},
			}},
			{ID: "x/p50", What: "latency: p50", Unit: "us", Values: []Value{{Variant: "tun", Spread: one(200), More: &more, Bound: true}}},
		},
		Missing: []string{"kernel: not here"},
	}
}

func TestPart(t *testing.T) {
	p := samplePart()
	for name, text := range map[string]string{"table": p.Table(), "document": p.Markdown()} {
		for _, want := range []string{"2.00 (1.00-3.00)", "1.00 noisy", "0.50x", "at least 200", "-30 (-40 to +12)", "kernel: not here"} {
			if !strings.Contains(text, want) {
				t.Errorf("the %s has no %q:\n%s", name, want, text)
			}
		}
	}
	if text := p.Markdown(); !strings.Contains(text, "| TCP, egress: CPU | s/GB | 2.00 (1.00-3.00) | 1.00 noisy, 0.50x |\n") || !strings.Contains(text, "- `tun`: ours") {
		t.Error(text)
	}
}

// The table for a terminal: what has no unit has no comma for one.
func TestTable(t *testing.T) {
	p := samplePart()
	p.Figures = append(p.Figures, Figure{ID: "x/failed", What: "latency: failed", Values: []Value{{Variant: "tun", Spread: Spread{3, 0, 0, 2}}, {Variant: "wireguard-go", Spread: one(1)}}})
	want := `TCP, egress
  CPU, s/GB  wireguard-go  2.00 (1.00-3.00)
  CPU, s/GB  tun           1.00 noisy        0.50x
latency
  p50, us  tun           at least 200  -30 (-40 to +12)
  failed   tun           0 (0-2)
  failed   wireguard-go  1

a machine; core 0
NOTE: kernel: not here
`
	if got := p.Table(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestRead(t *testing.T) {
	good := `{"name":"a","command":"c","machineLine":"m","date":"2026-01-31","other":1,"figures":[{"id":"x"},{"id":"y"}]}`
	if p, err := Read("a", strings.NewReader(good)); err != nil || len(p.Figures) != 2 {
		t.Errorf("%v, %+v", err, p)
	}
	for _, bad := range []string{
		`{`, `{"name":"a","command":"c","date":"2026-01-31"}`,
		strings.Replace(good, "2026-01-31", "yesterday", 1), strings.Replace(good, `"y"`, `"x"`, 1),
	} {
		if _, err := Read("a", strings.NewReader(bad)); err == nil {
			t.Errorf("%s passed", bad)
		}
	}
	if _, err := Read("b", strings.NewReader(good)); err == nil {
		t.Error("a part by another name passed")
	}
}

const scenarioText = `{"version":1,"date":"2026-01-31T23:00:00Z","command":"sallyport-bench run --chain","sallyport":"v1","machine":{"line":"a machine"},
"load1":0.5,"gateway":{"kind":"chain","uplink":"tun"},"problems":[],"scenarios":[
{"name":"sandboxes","title":"many sandboxes","steps":[
 {"name":"1 sandbox","figures":{"processMicros":5,"unknown":1},"latency":{"p50":100,"p99":200},"sources":{"wrong":0,"checked":true}},
 {"name":"10,000 sandboxes","figures":{"processMicros":5.5},"marks":["noisy"],"refused":true},
 {"name":"100 sandboxes","figures":{"processMicros":5}},
 {"name":"100 sandboxes of 10,000 attached","figures":{"processMicros":5.5}}]},
{"name":"attach","title":"attach storm","notRun":"no API","steps":[]}]}`

// What run writes becomes a part, whose variants are its steps.
func TestReadScenarios(t *testing.T) {
	p, err := Read("sandboxes", strings.NewReader(scenarioText))
	if err != nil {
		t.Fatal(err)
	}
	if _, v := p.find("sandboxes/processMicros", "10,000 sandboxes"); v == nil || v.Median != 5.5 || !v.Noisy {
		t.Errorf("%+v", v)
	}
	if _, v := p.find("sandboxes/p99", anyVariant); v == nil || v.Median != 200 {
		t.Errorf("%+v", v)
	}
	if _, v := p.find("sandboxes/wrongSources", "1 sandbox"); v == nil || v.Median != 0 {
		t.Errorf("%+v", v)
	}
	if text := strings.Join(p.Missing, "; "); text != "attach: no API; sandboxes: 10,000 sandboxes: noisy" && text != "sandboxes: 10,000 sandboxes: noisy; attach: no API" {
		t.Error(text)
	}
	parts := map[string]*Part{"sandboxes": p}
	for _, want := range targets() {
		if want.part != "sandboxes" {
			continue
		}
		if r := want.judge(parts); r.verdict != met || r.compared() != "1.10x" {
			t.Errorf("%s: %v, %s", r.what, r.verdict, r.compared())
		}
	}
	if strings.Contains(p.Markdown(), "unknown") || p.Date != "2026-01-31" {
		t.Error(p.Markdown())
	}
}

// A target is met, missed, only told, or was not measured.
func TestJudge(t *testing.T) {
	parts := map[string]*Part{"tcp": samplePart()}
	base := target{part: "tcp", figure: "tcp-out/processPerGB", variant: "tun"}
	for name, c := range map[string]struct {
		change func(*target)
		want   verdict
	}{
		"a ratio that is met":            {func(t *target) { t.by, t.limit = byRatio, 0.5 }, met},
		"a ratio that is missed":         {func(t *target) { t.by, t.limit = byRatio, 0.4 }, missed},
		"a ratio that is to be more":     {func(t *target) { t.by, t.limit, t.least = byRatio, 0.6, true }, missed},
		"a median that is to be more":    {func(t *target) { t.limit, t.least = 1, true }, met},
		"no limit":                       {func(t *target) { t.open = true }, told},
		"a ratio to another figure":      {func(t *target) { t.by, t.first, t.limit = byFirst, "x/p50", 0.005 }, met},
		"another figure that is missing": {func(t *target) { t.by, t.first = byFirst, "none" }, unknown},
		"a difference":                   {func(t *target) { t.by, t.figure, t.limit = byMore, "x/p50", 0 }, met},
		"a difference that is missing":   {func(t *target) { t.by = byMore }, unknown},
		"a ratio that is missing":        {func(t *target) { t.by, t.figure = byRatio, "x/p50" }, unknown},
		"no such variant":                {func(t *target) { t.variant = "sockets" }, unknown},
		"no such figure":                 {func(t *target) { t.figure = "none" }, unknown},
		"no such part":                   {func(t *target) { t.part = "none" }, unknown},
	} {
		one := base
		c.change(&one)
		if r := one.judge(parts); r.verdict != c.want {
			t.Errorf("%s: %v, want %v", name, r.verdict, c.want)
		}
	}
}

// All targets stand in the table, also those of which nothing is known.
func TestReport(t *testing.T) {
	r, err := New([]*Part{samplePart()})
	if err != nil {
		t.Fatal(err)
	}
	text := r.Targets()
	if got := strings.Count(text, "not measured |"); got != len(targets()) { // one is, and strays are not
		t.Errorf("%d of %d targets are not measured", got, len(targets()))
	}
	stray := &Part{Name: "udp64", Figures: []Figure{{ID: "udp-out/wrongPackets", Values: []Value{{Variant: "tun", Spread: Spread{5, 0, 0, 2}}, {Variant: "gvisor", Spread: one(7)}}}}}
	if s := strays(map[string]*Part{"udp64": stray}); s.verdict != missed || s.value.Median != 2 {
		t.Errorf("strays: %v, %+v", s.verdict, s.value)
	}
	for _, want := range []string{
		"| CPU per GB of TCP, `tun`, egress | <= 0.70x | 1.00 noisy s/GB | wireguard-go 2.00 (1.00-3.00) | 0.50x | met | tcp |",
		"- `tcp`, 2026-01-31: `sallyport-bench compare`, on a machine",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if svg := r.Ratios().SVG(); strings.Count(svg, "<rect") != 1 {
		t.Error(svg)
	}
	if text := r.Measured(); !strings.Contains(text, "\n## TCP\n") {
		t.Error(text)
	}
	if n := len(samplePart().Pictures()); n != 1 {
		t.Errorf("%d pictures, want that of the figure with two variants", n)
	}
	if _, err := New([]*Part{samplePart(), samplePart()}); err == nil {
		t.Error("two parts of one name")
	}
}

// How a part stands is counted from its rows of the table, and what it missed is named with
// its figures.
func TestVerdict(t *testing.T) {
	p := samplePart()
	ratio := one(0.9)
	p.Figures[0].Values[1].Ratio = &ratio
	r, err := New([]*Part{p, {Name: "other"}})
	if err != nil {
		t.Fatal(err)
	}
	verdict, missing := r.Verdict("tcp")
	if !strings.HasPrefix(verdict, "0 met, 1 missed, ") || len(missing) != 1 || missing[0] != "CPU per GB of TCP, tun, egress: 1.00 noisy s/GB 0.90x; target <= 0.70x" {
		t.Errorf("%q, %q", verdict, missing)
	}
	if verdict, missing := r.Verdict("other"); verdict != "no targets" || missing != nil {
		t.Errorf("without targets: %q, %q", verdict, missing)
	}
	if verdict, missing := r.Verdict(""); !strings.Contains(verdict, "1 missed") || len(missing) != 1 {
		t.Errorf("all: %q, %q", verdict, missing)
	}
	table := r.Table()
	if len(table) != 1+len(r.rows()) || strings.ContainsAny(table[1][0]+table[1][5], "`*") || table[1][5] != "missed" {
		t.Errorf("%d rows, the first %q", len(table), table[1])
	}
}

func TestReplace(t *testing.T) {
	got, err := Replace("before\n"+beginMark+"old"+endMark+"\nafter", "new\n")
	if want := "before\n" + beginMark + "\n\nnew\n\n" + endMark + "\nafter"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"", beginMark, endMark + beginMark} {
		if _, err := Replace(text, "new"); err == nil {
			t.Errorf("%q was changed", text)
		}
	}
}

const benchOutput = `goos: linux
pkg: example
BenchmarkEgress/1k-2         	     100	         0 ns/op	        75.0 ns/packet
BenchmarkEgress/1k-2         	     100	         0 ns/op	        77.0 ns/packet
BenchmarkSNAT/1k/gvisor-2    	     100	      4000 ns/packet	        13.00 allocs/packet
BenchmarkSNAT/1k/sallyport-batch-2   	     100	       80 ns/packet	         0 allocs/packet
BenchmarkName
PASS
`

func TestGoBenchmarks(t *testing.T) {
	figures, err := GoBenchmarks(strings.NewReader(benchOutput))
	if err != nil || len(figures) != 3 {
		t.Fatalf("%v, %+v", err, figures)
	}
	p := &Part{Figures: figures}
	if _, v := p.find("Egress/1k ns/packet", ""); v == nil || v.Spread != (Spread{2, 76, 75, 77}) {
		t.Errorf("%+v", v)
	}
	if _, v := p.find("SNAT/1k ns/packet", "sallyport-batch"); v == nil || v.Ratio == nil || v.Ratio.Median != 0.02 {
		t.Errorf("%+v", v)
	}
	for _, bad := range []string{"", "PASS", benchOutput + "--- FAIL: BenchmarkX\n", "BenchmarkA 1 x ns/op"} {
		if _, err := GoBenchmarks(strings.NewReader(bad)); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}
