package scenario

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/search"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files anew")
	flag.Parse()
	os.Exit(netlab.Enter(programs.Around(m)))
}

var pair = []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")}

// made is a result with one of everything.
func made() *result {
	h := histogram.New()
	for i := range 1000 {
		h.Record(time.Duration(150+i) * time.Microsecond)
	}
	return &result{
		Version: resultVersion, Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Command: "sallyport-bench run --chain", Sallyport: "v1.2.3",
		Machine: machine.Facts{CPU: "a CPU", Cores: 2, Memory: 4096, Kernel: "6.1", Go: "go1.26"}, Load1: 0.5, Seconds: 61, Again: again{Allowed: 10, Used: 2},
		Gateway: about{Kind: "chain", Uplink: "tun", Endpoint: netip.MustParseAddrPort("198.51.100.1:51820"), Pair: pair,
			Far: netip.MustParseAddrPort("192.0.2.80:9000"), CPU: "process 4711 (sallyportd) and core 0"},
		Scenarios: []*outcome{
			{Name: "udp-out", Title: "UDP, packets of 64 bytes, egress", Steps: []*step{
				{Name: "20,000/s", At: 1.5, Load: load{Rate: 20000, Size: 64, Sandboxes: 16, Flows: 64, Seconds: 10},
					Figures: values{figureRate: 19999.4, figureLoss: 0.001, figureProcess: 5.87, figureCore: 6.02, figureGbps: 0.0102},
					Latency: latencyOf(h), Series: []series{{"arrived", "packets/s", [][2]float64{{0.1, 20000}, {0.3, 19900}, {0.5, 20050}}}},
					Attempts: 1, Sources: &sources{Seen: pair[:1], Checked: true}, Noise: noise{Stolen: 0.001, Disturbed: 0.02, Reached: 1}},
				{Name: "peak", Figures: values{figurePeak: 250123}, Limit: &trial.Limit{By: search.LimitCore, Rate: 262144, Why: "0.31 % of the packets were lost on their way; the gateway's core was 97 % in use"}, Noise: noise{Stolen: 0.02}, Attempts: 3, Marks: []string{"NOISY: the hypervisor gave 2.0 % of all cores' time to others, more than 1 % (the last of 3 attempts, all noisy)"}},
			}},
			{Name: nameSandboxes, Title: "many sandboxes: cost per packet", Problems: []string{"the gateway is no more"}, Steps: []*step{
				{Name: "1 sandbox", Load: load{Sandboxes: 1}, Figures: values{figureProcess: 5.1, figureCore: 5.6}},
				{Name: "1,000 sandboxes", Load: load{Sandboxes: 1000}, Figures: values{figureProcess: 5.9, figureCore: 6.6}, Refused: true, Attempts: 1, Noise: noise{Reached: 0.5, Why: []string{"the source kept 50 % of its rate"}}},
				{Name: "10,000 sandboxes", Load: load{Sandboxes: 10000}, Figures: values{}, Wrong: []string{"7 packets came from 192.0.2.1\x1b[2J"}},
			}},
			{Name: "failover", Title: "hosts are lost", NotRun: "give --chain", Steps: []*step{}},
		},
		Problems: []string{"end the chain: it <b>hung</b>"},
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if f := flag.Lookup("update"); f.Value.String() == "true" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s has changed; look at it and run go test ./bench/scenario -update:\n%s", name, got)
	}
}

// The JSON document, the table and the page are what others read: changes show.
func TestReports(t *testing.T) {
	r := made()
	var table, text bytes.Buffer
	if err := r.print(&table); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.golden", table.String())
	e := json.NewEncoder(&text)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		t.Fatal(err)
	}
	golden(t, "result.json", text.String())
	page := r.page()
	golden(t, "page.html", page)
	svgs := 0
	for d := xml.NewDecoder(strings.NewReader(page)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok {
			if e.Name.Local == "svg" {
				svgs++
			}
			for _, a := range e.Attr {
				if a.Name.Local == "src" || a.Name.Local == "href" && !strings.HasPrefix(a.Value, "#") {
					t.Errorf("the page loads %s", a.Value)
				}
			}
		}
	}
	if svgs != 3 {
		t.Errorf("%d pictures, want those over time, of latency, and by scale", svgs)
	}
	if n := r.faults(); n != 4 {
		t.Errorf("%d findings, want a problem, a scenario's, a refused step and a wrong one", n)
	}
	if !strings.Contains(r.first(), "too noisy: the source kept 50 % of its rate") {
		t.Errorf("first: %s", r.first())
	}
}

// Files are written, and what cannot be written is an error.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	cfg := &Config{JSON: filepath.Join(dir, "a.json"), HTML: filepath.Join(dir, "a.html")}
	if err := made().write(cfg); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{cfg.JSON, cfg.HTML} {
		if info, err := os.Stat(name); err != nil || info.Size() < 1000 {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg.JSON = filepath.Join(dir, "nowhere", "a.json")
	if err := made().write(cfg); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("into a folder that is not there: %v", err)
	}
}

// What is noisy is marked, or thrown away.
func TestNoise(t *testing.T) {
	noisy := noise{Stolen: 0.011, Disturbed: 0.06, Reached: 0.9}
	s := &step{Figures: values{figureRate: 1}, Noise: noisy}
	(&runner{cfg: &Config{}}).judge(s, "")
	if len(s.Marks) != 3 || len(s.Noise.Why) != 3 || s.Refused || s.Figures[figureRate] != 1 {
		t.Errorf("marked: %+v", s)
	}
	s = &step{Figures: values{figureRate: 1}, Latency: &latency{}, Series: []series{{}}, Noise: noisy}
	(&runner{cfg: &Config{Strict: true}}).judge(s, "")
	if !s.Refused || len(s.Noise.Why) != 3 || len(s.Figures) != 0 || s.Latency != nil || s.Series != nil {
		t.Errorf("strictly: %+v", s)
	}
	s = &step{Figures: values{figureRate: 1}, Noise: noise{Stolen: 0.009, Disturbed: 0.04, Reached: 0.98}}
	(&runner{cfg: &Config{Strict: true}}).judge(s, "")
	if s.Refused || len(s.Marks) != 0 || len(s.Noise.Why) != 0 {
		t.Errorf("quiet: %+v", s)
	}
}

// A gateway that answers wrongly: each way is a finding.
func TestInspect(t *testing.T) {
	r := &runner{pair: pair}
	from := func(a string) wire.Report {
		return wire.Report{Packets: 10, Sources: []wire.Source{{Addr: pair[0], Count: 6}, {Addr: netip.MustParseAddr(a), Count: 4}}}
	}
	for want, one := range map[string]carried{
		"":                        {sent: 10, got: 10, report: from("203.0.113.3")},
		"4 packets or connection": {sent: 10, got: 10, report: from("203.0.113.4")},
		"more addresses than":     {sent: 10, got: 10, report: wire.Report{Others: 3}},
		"2 packets came twice":    {sent: 10, got: 10, report: wire.Report{Duplicates: 2}},
		"3 packets came twice":    {sent: 10, got: 10, received: traffic.Received{Duplicates: 3}},
		"1 packet came back dama": {sent: 10, got: 10, received: traffic.Received{Damaged: 1}},
		"2 packets came back tha": {sent: 10, got: 10, received: traffic.Received{Foreign: 1, Strange: 1}},
		"none arrived":            {sent: 10},
	} {
		s := &step{Figures: values{}}
		r.inspect(s, one)
		text := strings.Join(s.Wrong, "; ")
		if (want == "") != (len(s.Wrong) == 0) || !strings.Contains(text, want) {
			t.Errorf("%q: got %q", want, text)
		}
	}
	s := &step{Figures: values{}}
	(&runner{}).inspect(s, carried{sent: 10, got: 10, report: from("203.0.113.4")})
	(&runner{}).inspect(s, carried{sent: 10, got: 10, report: wire.Report{Others: 3}})
	if len(s.Wrong) != 0 || s.Sources.Checked || len(s.Sources.Seen) != 2 || s.Sources.More != 3 {
		t.Errorf("without a pair: %+v", s.Sources)
	}
	// What was broken off is not the gateway's fault.
	s = &step{Figures: values{}}
	if r.inspect(s, carried{sent: 10, broken: true}); len(s.Wrong) != 0 {
		t.Errorf("broken off: %v", s.Wrong)
	}
	// A gateway that died: nobody says what arrived, and nobody makes it up.
	s = &step{Figures: values{}}
	r.note(s, carried{sent: 10, Datagrams: search.Datagrams{Reached: 1, Lost: 1, Late: 1}, blind: true}, traffic.Load{})
	if len(s.Wrong) != 0 || len(s.Figures) != 0 || len(s.Marks) != 1 || s.Noise.Reached != 0 {
		t.Errorf("of one that died: %+v", s)
	}
}

// Rates over time begin with the first arrival and end with the load.
func TestTrace(t *testing.T) {
	tr := &trace{}
	start := time.Unix(100, 0)
	for i := range 301 { // a second of nothing, one of 1,000/s, one of a late hundred
		n := uint64(0)
		switch {
		case i > 250:
			n = 1100
		case i > 200:
			n = 1000
		case i > 100:
			n = uint64(i-100) * 10
		}
		tr.add(start.Add(time.Duration(i)*10*time.Millisecond), n)
	}
	if got := tr.begun(); !got.Equal(start.Add(time.Second)) {
		t.Errorf("it began at %v", got.Sub(start))
	}
	if n := tr.within(time.Second + lag); n != 1000 {
		t.Errorf("%d in time", n)
	}
	s := tr.series("a", "b", time.Second, 2)
	if len(s.Points) < 30 || len(s.Points) > 70 {
		t.Fatalf("%d points", len(s.Points))
	}
	for _, p := range s.Points[:len(s.Points)-2] {
		if p[1] < 1999 || p[1] > 2001 {
			t.Errorf("%v", p)
		}
	}
	if got := tr.lost(1000); got < 0.4 || got > 0.5 {
		t.Errorf("%.2f are lost", got)
	}
	tr.add(start.Add(4*time.Second), 5)
	if n := tr.within(2 * time.Second); n != 5 || !tr.begun().Equal(start.Add(3*time.Second)) {
		t.Errorf("after a count was begun anew: %d, from %v on", n, tr.begun().Sub(start))
	}
	count := uint64(7)
	read := fresh(func() uint64 { return count })
	for _, c := range [][2]uint64{{7, 0}, {9, 9}, {7, 7}} {
		if count = c[0]; read() != c[1] {
			t.Errorf("%d is not read as %d", c[0], c[1])
		}
	}
	if empty := (&trace{}); !empty.begun().IsZero() || len(empty.series("a", "b", time.Second, 1).Points) != 0 {
		t.Error("an empty one has begun")
	}
}

// Each column has a meaning, and each scenario a verdict by the worst of it.
func TestPageExplains(t *testing.T) {
	means := meanings()
	for _, f := range figures() {
		if means[f.name] == "" {
			t.Errorf("nobody says what %s means", f.name)
		}
	}
	if len(means) != len(figures()) {
		t.Errorf("%d meanings for %d figures", len(means), len(figures()))
	}
	r := made()
	for i, want := range []struct {
		verdict string
		why     int
	}{{"to be read with care", 1}, {"wrong", 3}, {"not run", 1}} {
		if verdict, why := r.Scenarios[i].verdict(); verdict != want.verdict || len(why) != want.why {
			t.Errorf("%s: %q, %q", r.Scenarios[i].Name, verdict, why)
		}
	}
	many := &outcome{Problems: []string{"1", "2", "3", "4", "5"}}
	if verdict, why := many.verdict(); verdict != "failed" || len(why) != maxWhy+1 || !strings.Contains(why[maxWhy], "2 more") {
		t.Errorf("%q, %q", verdict, why)
	}
	if verdict, why := (&outcome{Steps: []*step{{}}}).verdict(); verdict != "good" || len(why) != 0 {
		t.Errorf("%q, %q", verdict, why)
	}
	if v := r.verdict(); !strings.HasPrefix(v, "0 of 3 scenarios are good, 4 findings") || !strings.Contains(v, "hung") {
		t.Errorf("%q", v)
	}
}

// All is measured when each scenario came to its end, also badly.
func TestWhole(t *testing.T) {
	cfg := &Config{Scenarios: []string{"latency-idle", "attach"}}
	for name, c := range map[string]struct {
		spoil func(*result)
		want  bool
	}{
		"all":               {func(*result) {}, true},
		"wrong":             {func(r *result) { r.Scenarios[0].Steps[0].fail("a wrong source") }, true},
		"marked":            {func(r *result) { r.Scenarios[0].Steps[0].mark("NOISY") }, true},
		"broken off":        {func(r *result) { r.Scenarios[0].Steps[0].Broken = true }, false},
		"thrown away":       {func(r *result) { r.Scenarios[0].Steps[0].Refused = true }, false},
		"ended before":      {func(r *result) { r.Scenarios[1].Problems = []string{"it ended"} }, false},
		"not run":           {func(r *result) { r.Scenarios[1].NotRun = "it needs more" }, false},
		"one step left out": {func(r *result) { r.Scenarios[0].Steps[0].Figures = values{} }, false},
		"interrupted":       {func(r *result) { r.Scenarios = r.Scenarios[:1] }, false},
		"cannot be reached": {func(r *result) { r.Problems = []string{"no answer"} }, false},
	} {
		r := &result{Scenarios: []*outcome{{Name: "latency-idle", Steps: []*step{{Figures: values{figureRate: 1}}}}, {Name: "attach"}}}
		c.spoil(r)
		if r.whole(cfg) != c.want {
			t.Errorf("%s: whole is %v", name, !c.want)
		}
	}
}
