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
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files anew")
	flag.Parse()
	os.Exit(netlab.Enter(m))
}

var pair = []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")}

// made is a result with one of everything.
func made() *result {
	h := &histogram.Histogram{}
	for i := range 1000 {
		h.Record(time.Duration(150+i) * time.Microsecond)
	}
	return &result{
		Version: resultVersion, Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Command: "sallyport-bench run --chain", Sallyport: "v1.2.3",
		Machine: machine.Facts{CPU: "a CPU", Cores: 2, Memory: 4096, Kernel: "6.1", Go: "go1.26"}, Load1: 0.5, Seconds: 61,
		Gateway: about{Kind: "chain", Uplink: "tun", Endpoint: netip.MustParseAddrPort("198.51.100.1:51820"), Pair: pair,
			Far: netip.MustParseAddrPort("192.0.2.80:9000"), CPU: "process and core"},
		Scenarios: []*outcome{
			{Name: "udp-64-out", Title: "UDP, packets of 64 bytes, egress", Steps: []*step{
				{Name: "20,000/s", At: 1.5, Load: load{Rate: 20000, Size: 64, Sandboxes: 16, Flows: 64, Seconds: 10},
					Figures: values{figureRate: 19999.4, figureLoss: 0.001, figureProcess: 5.87, figureCore: 6.02, figureGbps: 0.0102},
					Latency: latencyOf(h), Series: []series{{"arrived", "packets/s", [][2]float64{{0.1, 20000}, {0.3, 19900}, {0.5, 20050}}}},
					Sources: &sources{Seen: pair[:1], Checked: true}, Noise: noise{Stolen: 0.001, Disturbed: 0.02, Reached: 1}},
				{Name: "peak", Figures: values{figurePeak: 250123}, Noise: noise{Stolen: 0.02}, Marks: []string{"NOISY: the hypervisor gave 2.0 % of the time to others"}},
			}},
			{Name: nameSandboxes, Title: "many sandboxes: cost per packet", Problems: []string{"the gateway is no more"}, Steps: []*step{
				{Name: "1 sandbox", Load: load{Sandboxes: 1}, Figures: values{figureProcess: 5.1, figureCore: 5.6}},
				{Name: "1,000 sandboxes", Load: load{Sandboxes: 1000}, Figures: values{figureProcess: 5.9, figureCore: 6.6}, Refused: true, Noise: noise{Reached: 0.5}},
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
				if a.Name.Local == "src" || a.Name.Local == "href" {
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
	if !strings.Contains(r.first(), "too noisy") {
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
	(&runner{cfg: &Config{}}).judge(s)
	if len(s.Marks) != 3 || s.Refused || s.Figures[figureRate] != 1 {
		t.Errorf("marked: %+v", s)
	}
	s = &step{Figures: values{figureRate: 1}, Latency: &latency{}, Series: []series{{}}, Noise: noisy}
	(&runner{cfg: &Config{Strict: true}}).judge(s)
	if !s.Refused || len(s.Figures) != 0 || s.Latency != nil || s.Series != nil {
		t.Errorf("strictly: %+v", s)
	}
	s = &step{Figures: values{figureRate: 1}, Noise: noise{Stolen: 0.009, Disturbed: 0.04, Reached: 0.98}}
	(&runner{cfg: &Config{Strict: true}}).judge(s)
	if s.Refused || len(s.Marks) != 0 {
		t.Errorf("quiet: %+v", s)
	}
}

// A gateway that answers wrongly: each way is a finding.
func TestInspect(t *testing.T) {
	r := &runner{pair: pair}
	from := func(a string) wire.Report {
		return wire.Report{Packets: 10, Sources: []wire.Source{{Addr: pair[0], Count: 6}, {Addr: netip.MustParseAddr(a), Count: 4}}}
	}
	for want, one := range map[string]trial{
		"":                        {sent: 10, got: 10, report: from("203.0.113.3")},
		"4 packets or connection": {sent: 10, got: 10, report: from("203.0.113.4")},
		"more addresses than":     {sent: 10, got: 10, report: wire.Report{Others: 3}},
		"2 packets came twice":    {sent: 10, got: 10, report: wire.Report{Duplicates: 2}},
		"3 packets came twice":    {sent: 10, got: 10, received: traffic.Received{Duplicates: 3}},
		"1 packets came back dam": {sent: 10, got: 10, received: traffic.Received{Damaged: 1}},
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
	(&runner{}).inspect(s, trial{sent: 10, got: 10, report: from("203.0.113.4")})
	(&runner{}).inspect(s, trial{sent: 10, got: 10, report: wire.Report{Others: 3}})
	if len(s.Wrong) != 0 || s.Sources.Checked || len(s.Sources.Seen) != 2 || s.Sources.More != 3 {
		t.Errorf("without a pair: %+v", s.Sources)
	}
	// What was broken off is not the gateway's fault.
	s = &step{Figures: values{}}
	if r.inspect(s, trial{sent: 10, broken: true}); len(s.Wrong) != 0 {
		t.Errorf("broken off: %v", s.Wrong)
	}
	// A gateway that died: nobody says what arrived, and nobody makes it up.
	s = &step{Figures: values{}}
	r.note(s, trial{sent: 10, reached: 1, loss: 1, late: 1, blind: true}, traffic.Load{})
	if len(s.Wrong) != 0 || len(s.Figures) != 0 || len(s.Marks) != 1 || s.Noise.Reached != 0 {
		t.Errorf("of one that died: %+v", s)
	}
}

// A line is rewritten on a terminal, steps have a line elsewhere, and nobody need listen.
func TestProgress(t *testing.T) {
	start := time.Unix(0, 0)
	tell := func(p *progress) {
		p.begin("[1/3] udp-64-out  peak", start, 10*time.Second)
		p.rate(start.Add(5*time.Second), 149203, 0.0002)
		p.rate(start.Add(5*time.Second+repaint/2), 1, 0) // too soon
		p.line("peak  %s", "a\nb")
		p.end()
	}
	var b bytes.Buffer
	tell(newProgress(&b, true, 60))
	if got, want := b.String(), "\r\x1b[K[1/3] udp-64-out  peak    0 %\r\x1b[K[1/3] udp-64-out  peak   50 %  149,203/s  0.02 % lost\r\x1b[Kpeak  a; b\n\r\x1b[K"; got != want {
		t.Errorf("on a terminal %q, want %q", got, want)
	}
	b.Reset()
	tell(newProgress(&b, true, 20))
	for _, part := range strings.Split(b.String(), clearLine) {
		if n := len([]rune(part)); n > 19 && !strings.HasSuffix(part, "\n") {
			t.Errorf("%d characters on 20 columns: %q", n, part)
		}
	}
	b.Reset()
	tell(newProgress(&b, false, 0))
	if got := b.String(); got != "peak  a; b\n" {
		t.Errorf("elsewhere %q", got)
	}
	tell(newProgress(nil, true, 0))
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := group(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
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
