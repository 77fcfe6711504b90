package failover

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(leakChecked{m})) }

// leakChecked fails the package if a goroutine outlives its tests.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(goleak.IgnoreAnyFunction("os/signal.loop")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

var update = flag.Bool("update", false, "write the golden files")

const ms = time.Millisecond

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i)
	}
	for _, c := range []struct {
		values []time.Duration
		p      float64
		want   time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{7}, 50, 7},
		{[]time.Duration{7}, 99, 7},
		{[]time.Duration{3, 1}, 50, 1},
		{[]time.Duration{3, 1, 2}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred[:99], 99, 100}, // 2 to 100: 99 % of 99 values are not all but one
		{hundred, 0, 1},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("p%v of %d values: %v, want %v", c.p, len(c.values), got, c.want)
		}
	}
}

// The percentile is one of the values, at least so many do not exceed it, and of
// the value before it that is not so.
func TestPercentileAgainstItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Map(rapid.IntRange(1, 50), func(n int) time.Duration { return time.Duration(n) }), 1, 40).Draw(t, "values")
		p := float64(rapid.IntRange(1, 100).Draw(t, "p"))
		got := percentile(values, p)
		share := func(limit time.Duration) float64 {
			n := 0
			for _, v := range values {
				if v <= limit {
					n++
				}
			}
			return 100 * float64(n) / float64(len(values))
		}
		if !slices.Contains(values, got) || share(got) < p-1e-9 || share(got-1) >= p+1e-9 {
			t.Fatalf("p%v of %v is %v", p, values, got)
		}
	})
}

func TestSummaryLeavesOutWhatNeverHappened(t *testing.T) {
	runs := []run{
		{Fault: "a", measurement: measurement{First: 100 * ms, Reset: 90 * ms, UDP: 110 * ms}, Back: time.Second},
		{Fault: "a", measurement: measurement{First: 300 * ms}, Back: 2 * time.Second},
		{Fault: "a", measurement: measurement{}},
		{Fault: "b", measurement: measurement{First: 200 * ms}},
	}
	got := summarize("a", runs)
	want := summary{
		Fault: "a", Runs: 3,
		First: spread{2, 100 * ms, 300 * ms, 300 * ms}, Reset: spread{1, 90 * ms, 90 * ms, 90 * ms},
		UDP: spread{1, 110 * ms, 110 * ms, 110 * ms}, Back: spread{2, time.Second, 2 * time.Second, 2 * time.Second},
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if all := summarize("", runs); all.Runs != 4 || all.First != (spread{3, 200 * ms, 300 * ms, 300 * ms}) {
		t.Errorf("all: %+v", all)
	}
	if met(got.First, got.First.P50, targetP50, got.Runs) != "not met" {
		t.Error("a target is met though a run never recovered")
	}
}

func TestAfterTheCut(t *testing.T) {
	const cut = instant(1_000_000_000)
	at := func(d time.Duration) instant { return cut + instant(d) }
	old, sibling, passive := activePair[0], activePair[1], passivePair[0]
	f := &flows{
		attempts: []attempt{
			{at(-20 * ms), at(-10 * ms), old},
			{at(-5 * ms), at(250 * ms), sibling}, // opened before: does not count
			{at(1 * ms), at(2 * ms), old},        // answered by what was to be dead
			{at(40 * ms), at(280 * ms), sibling},
			{at(5 * ms), at(270 * ms), passive}, // the earliest answer, though not the first in the list
		},
		idle: idleFlow{ended: at(240 * ms), how: "reset"},
		udp: udpFlow{answers: []attempt{
			{at(-10 * ms), at(-9 * ms), old}, {at(-1 * ms), at(260 * ms), sibling}, {at(2 * ms), at(3 * ms), old}, {at(255 * ms), at(261 * ms), sibling},
		}},
	}
	want := measurement{First: 270 * ms, FirstOpened: 5 * ms, Source: passive, Reset: 240 * ms, How: "reset", UDP: 261 * ms, UDPSource: sibling, Stale: 1}
	if got := f.after(cut, old); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	f.idle.ended = at(-1)
	if got := f.after(cut, old); got.Reset != 0 || got.How != "ended before the cut: reset" {
		t.Errorf("an end before the cut: %+v", got)
	}
	f = &flows{}
	if got := f.after(cut, old); got != (measurement{}) {
		t.Errorf("nothing yet: %+v", got)
	}
}

func TestKeepIsBounded(t *testing.T) {
	var list []attempt
	for i := range instant(3 * keptAttempts) {
		list = keep(list, attempt{opened: i})
	}
	if len(list) != keptAttempts || list[len(list)-1].opened != 3*keptAttempts-1 || list[0].opened != 2*keptAttempts {
		t.Errorf("%d kept, from %d to %d", len(list), list[0].opened, list[len(list)-1].opened)
	}
}

func TestParseEcho(t *testing.T) {
	for text, want := range map[string]bool{
		"203.0.113.10:4711 123": true, "203.0.113.10:4711": false, "203.0.113.10 123": false, "203.0.113.10:4711 x": false, "": false,
	} {
		source, asked, ok := parseEcho(text)
		if ok != want || ok && (source != activePair[0] || asked != 123) {
			t.Errorf("%q: %v, %d, %t", text, source, asked, ok)
		}
	}
}

func TestMissing(t *testing.T) {
	w := &world{}
	for _, p := range hostPlans() {
		w.hosts = append(w.hosts, &gatewayHost{hostPlan: p})
	}
	s := &stage{world: w}
	good := measurement{First: 1, Source: passivePair[0], Reset: 1, How: "reset", UDP: 1, UDPSource: passivePair[1]}
	for _, c := range []struct {
		name   string
		region bool
		change func(*measurement)
		want   string
	}{
		{"nothing wrong", true, func(*measurement) {}, ""},
		{"the sibling, of a host", false, func(m *measurement) { m.Source = activePair[1] }, ""},
		{"the sibling, of a region", true, func(m *measurement) { m.Source = activePair[1] }, "203.0.113.11 answered, which cannot"},
		{"a stranger", false, func(m *measurement) { m.UDPSource = originLink.Addr() }, "192.0.2.80 answered, which cannot"},
		{"no connection", false, func(m *measurement) { m.First, m.Source = 0, netip.Addr{} }, "no new connection was answered within 5s of the cut"},
		{"no UDP", false, func(m *measurement) { m.UDP, m.UDPSource = 0, netip.Addr{} }, "the UDP flow was not answered within 5s of the cut"},
		{"no reset", false, func(m *measurement) { m.Reset, m.How = 0, "" }, "the idle connection was not reset within 5s of the cut"},
		{"another end", false, func(m *measurement) { m.How = "EOF" }, "the idle connection was not reset but ended: EOF"},
		{"an early end", false, func(m *measurement) { m.Reset, m.How = 0, "ended before the cut: EOF" }, "the idle connection ended before the cut: EOF"},
	} {
		m := good
		c.change(&m)
		got := strings.Join(s.missing(fault{byKill, c.region}, m), "; ")
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got := s.strangers(map[netip.Addr]int{activePair[0]: 3, passivePair[1]: 1, workerLink.Addr(): 2}); len(got) != 1 || !strings.Contains(got[0], "2 answers came to 198.51.100.2") {
		t.Errorf("strangers: %q", got)
	}
}

// The daemons accept what is written for them, and nothing but the return to the
// active host differs from the defaults.
func TestFilesAreValid(t *testing.T) {
	dir := t.TempDir()
	if err := writeFiles(dir); err != nil {
		t.Fatal(err)
	}
	read := func(name string) *bytes.Reader {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.NewReader(b)
	}
	if _, err := config.ReadState("state.yaml", read("state.yaml")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{activeRegion, passiveRegion} {
		d, err := config.ReadDaemon(filepath.Join(dir, name+".yaml"), read(name+".yaml"))
		if err != nil || !d.Roles.Control || d.Roles.Gateway {
			t.Errorf("%s: %+v, %v", name, d.Roles, err)
		}
	}
	for _, h := range hostPlans() {
		d, err := config.ReadDaemon(filepath.Join(dir, h.name+".yaml"), read(h.name+".yaml"))
		if err != nil || d.Roles.Control || !d.Roles.Gateway || d.Host != h.name {
			t.Errorf("%s: %+v, %v", h.name, d, err)
		}
	}
	s, err := config.ReadSidecar(filepath.Join(dir, "sidecar.yaml"), read("sidecar.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := config.ReadSidecar("x", strings.NewReader("token_file: t\nregion: iad1\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := plain.Failover
	want.Hold, want.HoldJitter, want.Failbacks, want.FailbackWindow = holdTime, holdJitter, failbacks, failbackWindow
	if s.Failover != want {
		t.Errorf("failover %+v, want %+v", s.Failover, want)
	}
}

func sample() *report {
	r := &report{
		Date: "2026-01-02", Version: "v1.2.3", Command: "sallyport-bench failover --runs 1 --load 2m0s", RunsEach: 1,
		Machine: machine.Facts{CPU: "Some CPU", Cores: 2, Memory: 4096, Kernel: "6.1.0", Go: "go1.26"}, Took: 95 * time.Second, Load1: 0.25, Stolen: 0.012,
		Load: &loadPhase{Seconds: 120, Streams: 8, Sent: 15e9, Received: 7.5e9, Busy: 0.994, Stolen: 0.01,
			Connections: tally{Answered: 2400, Longest: 45 * ms}, Probes: 5000, Missed: 3},
		Wire: wire{Packets: 123456},
	}
	for i, f := range faults() {
		d := time.Duration(200+50*i) * ms
		r.Runs = append(r.Runs, run{Fault: f.String(), measurement: measurement{First: d, Reset: d - 5*ms, UDP: d + 5*ms, Source: activePair[1], How: "reset"}, Back: 4 * d})
	}
	return r
}

func TestReport(t *testing.T) {
	r := sample()
	r.sumUp()
	if len(r.Problems) != 0 {
		t.Errorf("problems: %q", r.Problems)
	}
	compare(t, "good.golden", r.markdown())

	r.Runs[2].measurement = measurement{}
	r.Runs[2].Wrong = []string{"no new connection was answered within 5s of the cut"}
	r.Load.Switches, r.Load.Connections.Failed, r.Load.Wrong = 1, 2, []string{"2 answers came to 198.51.100.2, which is in no pair"}
	r.Wire = wire{Packets: 123456, Wrong: 7, Incomplete: "the kernel dropped 3", Examples: []string{"on the link of gw-a: 7 packets from 10.20.0.2"}}
	r.sumUp()
	if len(r.Problems) != 5 {
		t.Errorf("%d problems: %q", len(r.Problems), r.Problems)
	}
	var b strings.Builder
	r.writeResult(&b)
	compare(t, "bad.golden", b.String())
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./bench/failover -update); got:\n%s", name, got)
	}
}

func TestWrite(t *testing.T) {
	r := sample()
	r.sumUp()
	path := filepath.Join(t.TempDir(), "failover.md")
	var out bytes.Buffer
	if err := r.write(Config{Report: path, JSON: true, Out: &out}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != r.markdown() {
		t.Errorf("the file: %q, %v", b, err)
	}
	var back report
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.markdown() != r.markdown() {
		t.Errorf("the JSON is not the same report: %v\n%s", err, out.Bytes())
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("%d files were left", len(files))
	}
	if err := r.write(Config{Report: filepath.Join(path, "x.md"), Out: &out}); err == nil {
		t.Error("a report into nowhere passed")
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want bool
	}{
		{Config{Runs: 1}, true}, {Config{Runs: 20, Load: 2 * time.Minute}, true},
		{Config{}, false}, {Config{Runs: 1001}, false}, {Config{Runs: 1, Load: -1}, false}, {Config{Runs: 1, Load: 25 * time.Hour}, false},
	} {
		if err := c.cfg.validate(); (err == nil) != c.want {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
}
