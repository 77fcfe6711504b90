package demo

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(programs.Around(m))) }

var update = flag.Bool("update", false, "write the golden files")

// testPlan is read only.
var testPlan = namespacePlan()

func sources(texts ...string) (out []netip.AddrPort) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestSources(t *testing.T) {
	fifty := func(address string, ports int) (out []netip.AddrPort) {
		for i := range many {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(address), uint16(1024+i%ports)))
		}
		return out
	}
	for _, c := range []struct {
		name string
		got  outcome
		want outcome
	}{
		{"from the pair", allFrom(sources("203.0.113.11:1"), testPlan.acme), outcome{"203.0.113.11", true}},
		{"from nowhere", allFrom(nil, testPlan.acme), outcome{"nothing", false}},
		{"from another pair", allFrom(sources("203.0.113.11:1", "203.0.113.12:1"), testPlan.acme), outcome{"203.0.113.11 and 203.0.113.12", false}},
		{"from the worker", allFrom(sources("198.51.100.2:1"), testPlan.acme), outcome{"198.51.100.2", false}},
		{"from both", allFromBoth(sources("203.0.113.11:1", "203.0.113.10:1"), testPlan.acme), outcome{"203.0.113.10 and 203.0.113.11, of 2 functions", true}},
		{"from one only", allFromBoth(sources("203.0.113.11:1", "203.0.113.11:2"), testPlan.acme), outcome{"203.0.113.11, of 2 functions", false}},
		{"many from one", allFromOne(fifty("203.0.113.10", many), testPlan.acme), outcome{"203.0.113.10, 50 ports", true}},
		{"many that share ports", allFromOne(fifty("203.0.113.10", many-1), testPlan.acme), outcome{"203.0.113.10, 49 ports", false}},
		{"too few", allFromOne(fifty("203.0.113.10", many)[1:], testPlan.acme), outcome{"203.0.113.10, 49 ports", false}},
		{"many from two", allFromOne(append(fifty("203.0.113.10", many)[1:], sources("203.0.113.11:9")...), testPlan.acme), outcome{"203.0.113.10 and 203.0.113.11, 50 ports", false}},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestTwins(t *testing.T) {
	for _, c := range []struct {
		inner string
		outer []netip.AddrPort
		held  bool
	}{
		{"10.20.0.2", sources("203.0.113.10:1", "203.0.113.13:1"), true},
		{"10.20.0.3", sources("203.0.113.10:1", "203.0.113.13:1"), false},
		{"10.20.0.2", sources("203.0.113.13:1", "203.0.113.10:1"), false},
		{"10.20.0.2", sources("203.0.113.10:1", "203.0.113.11:1"), false},
	} {
		inner := [2]netip.Addr{netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr(c.inner)}
		if got := twins(testPlan, inner, [2]netip.AddrPort(c.outer)); got.held != c.held {
			t.Errorf("%v as %v: got %v, want %v", c.inner, c.outer, got, c.held)
		}
	}
}

func TestRefusal(t *testing.T) {
	const failure = `Get "http://192.0.2.66:80/": dial tcp 192.0.2.66:80: connect: no route to host`
	for _, c := range []struct {
		a    answer
		sent int
		want outcome
	}{
		{answer{Failure: failure, Took: 700 * time.Microsecond}, 0, outcome{"no route to host after 0.7 ms, 0 packets sent", true}},
		{answer{Failure: failure, Took: refusalPatience}, 0, outcome{"no route to host after 1000.0 ms, 0 packets sent", false}},
		{answer{Failure: failure}, 1, outcome{"no route to host after 0.0 ms, 1 packets sent", false}},
		{answer{Addresses: sources("203.0.113.10:1")}, 0, outcome{"an answer after 0.0 ms, 0 packets sent", false}},
	} {
		if got := refusal(c.a, c.sent, "packets sent"); got != c.want {
			t.Errorf("got %v, want %v", got, c.want)
		}
	}
}

func TestMetricSum(t *testing.T) {
	const series = `sallyport_drops_total{direction="egress",network="a",reason="wrong_source"} `
	for _, c := range []struct {
		text   string
		labels []string
		want   float64
		series int
		bad    bool
	}{
		{"# HELP x\n" + series + "0\n" + series + "0\n", []string{`reason="wrong_source"`}, 0, 2, false},
		{series + "1\n" + series + "3\n", []string{`reason="wrong_source"`, `network="a"`}, 4, 2, false},
		{series + "3\n", []string{`reason="wrong_source"`, `network="b"`}, 0, 0, false},
		{"sallyport_drops_total{reason=\"policy\"} 3\n", []string{`reason="wrong_source"`}, 0, 0, false},
		{series + "many\n", []string{`reason="wrong_source"`}, 0, 0, true},
	} {
		sum, n, err := metricSum(c.text, dropsMetric, c.labels...)
		if sum != c.want || n != c.series || (err != nil) != c.bad {
			t.Errorf("%q, %v: got %v of %d and %v, want %v of %d", c.text, c.labels, sum, n, err, c.want, c.series)
		}
	}
}

// TestReport holds what is printed against files; -update writes them.
func TestReport(t *testing.T) {
	lines := []result{
		{"a function", "203.0.113.10", "203.0.113.10", held},
		{"ICMP", "an answer", "no ping sockets", impossible},
		{"ünusual", "-", "198.51.100.2 although there are so many other addresses from which it could have come", failed},
	}
	for name, c := range map[string]struct {
		cfg   Config
		world string
	}{
		"plain":    {Config{}, worldNamespaces},
		"wide":     {Config{Terminal: true, Width: 200}, worldNamespaces},
		"terminal": {Config{Terminal: true, Width: 80}, worldLoopback},
	} {
		r := &report{
			World: c.world, Took: 1500 * time.Millisecond, Failure: "sallyportd ended",
			Logs: map[string]string{"b": "two\n", "a": "one\n"}, Results: lines,
		}
		if c.world != worldNamespaces {
			r.Why = "user namespaces are forbidden by some setting or other"
		}
		var b bytes.Buffer
		c.cfg.Out = &b
		p := newPrinter(c.cfg, testPlan)
		p.name, p.expected = 0, 0
		for _, x := range lines {
			p.measure(x.Name, x.Expected)
		}
		p.begin(r)
		for _, x := range r.Results {
			p.waiting(x.Name)
			p.result(x)
		}
		p.end(r)
		golden(t, name, b.Bytes())
		if name == "terminal" {
			checkWidth(t, b.String(), c.cfg.Width)
		}
		if name == "plain" {
			b.Reset()
			if err := writeJSON(&b, r); err != nil {
				t.Fatal(err)
			}
			golden(t, "json", b.Bytes())
		}
	}
}

// checkWidth looks for lines that a terminal would break.
func checkWidth(t *testing.T, text string, width int) {
	t.Helper()
	control := regexp.MustCompile("\x1b\\[[0-9]*[mK]")
	text = strings.ReplaceAll(control.ReplaceAllString(text, ""), "\r", "\n")
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d characters: %s", n, line)
		}
	}
}

// TestLayout lays out all expectations, at 80 columns and less.
func TestLayout(t *testing.T) {
	for _, width := range []int{0, 80, 60, 10} {
		var b bytes.Buffer
		p := newPrinter(Config{Out: &b, Terminal: true, Width: width}, testPlan)
		for _, c := range expectations(testPlan) {
			p.result(result{Name: c.name, Expected: c.expected, Seen: "203.0.113.10 after 123.4 ms, of 4 functions", Status: held})
		}
		want := width
		if width == 0 {
			want = usualWidth
		}
		checkWidth(t, b.String(), max(want, leastWidth))
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestNothingPossible(t *testing.T) {
	var b bytes.Buffer
	r := report{World: worldNone, Why: "one; two"}
	nothingPossible(newPrinter(Config{Out: &b}, testPlan), &r, testPlan)
	all := len(expectations(testPlan))
	if n := r.count(impossible); n != all || r.count(failed) != 0 {
		t.Errorf("%d of %d expectations are not possible", n, all)
	}
	if n := strings.Count(b.String(), "one; two"); n != 1 {
		t.Errorf("why is said %d times, not once, in:\n%s", n, b.String())
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		o    outcome
		err  error
		want status
	}{
		{outcome{"x", true}, nil, held},
		{outcome{"x", false}, nil, failed},
		{outcome{"", true}, errors.New("x"), failed},
		{outcome{}, errors.Join(&impossibleError{errors.New("x")}), impossible},
	} {
		look := func(context.Context, *stage) (outcome, error) { return c.o, c.err }
		if got := (check{name: "n", expected: "e", look: look}).judge(t.Context(), nil); got != (result{"n", "e", "x", c.want}) {
			t.Errorf("%v and %v: got %v, want %v", c.o, c.err, got, c.want)
		}
	}
}
