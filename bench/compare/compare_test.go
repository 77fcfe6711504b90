package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(m)) }

func valid() Config {
	return Config{Variants: Variants(), Scenarios: Scenarios(), Rounds: 1, Bulk: time.Second, Rate: 20000, Try: 100 * time.Millisecond}
}

func TestConfig(t *testing.T) {
	ok := valid()
	if err := ok.validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*Config){
		"no variant":        func(c *Config) { c.Variants = []string{"magic"} },
		"no scenario":       func(c *Config) { c.Scenarios = []string{"magic"} },
		"nothing to":        func(c *Config) { c.Variants = nil },
		"0 rounds":          func(c *Config) { c.Rounds = 0 },
		"transfer of 1.5s":  func(c *Config) { c.Bulk = 1500 * time.Millisecond },
		"10 packets per":    func(c *Config) { c.Rate = 10 },
		"try of 1ms":        func(c *Config) { c.Try = time.Millisecond },
		"there is no core":  func(c *Config) { c.Core = -1 },
		"transfer of 20m0s": func(c *Config) { c.Bulk = 20 * time.Minute },
	} {
		c := valid()
		spoil(&c)
		if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	c := valid()
	c.Bin, c.Core = t.TempDir(), 63
	err := Run(t.Context(), c)
	for _, want := range []string{"nothing can be compared here", "sallyportd", "wireguard-go", "make bench-compare", "core 63"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

// The packets are what a parser of ours and a kernel take: the checksums are right.
func TestSmallPackets(t *testing.T) {
	b := make([]byte, smallSize)
	from := netip.MustParseAddrPort("10.20.0.3:20007")
	fillSmall(b, from, remoteAddress, 7)
	var p packet.Packet
	if outcome := packet.Parse(&p, b); outcome != packet.Pass {
		t.Fatal(outcome)
	}
	if sum(0, b[:20]) != 0xffff {
		t.Error("the header's checksum is wrong")
	}
	if sum(uint32(17+len(b)-20)+uint32(sum(0, b[12:20])), b[20:]) != 0xffff {
		t.Error("the datagram's checksum is wrong")
	}
	if b[smallHeader] != 0 || b[smallHeader+1] != 7 {
		t.Error("the flow's number is not in the payload")
	}
}

func TestPacer(t *testing.T) {
	p := pacer{woken: make(chan struct{}, 1)}
	start := time.Unix(0, 0)
	if _, n, wait := p.take(start.Add(time.Hour), 10); n != 0 || wait != idleWait {
		t.Errorf("without a pace: %d, %v", n, wait)
	}
	p.set(start, 10000, time.Second)
	var first uint64
	for now := start; now.Before(start.Add(2 * time.Second)); now = now.Add(50 * time.Microsecond) {
		f, n, wait := p.take(now, 128)
		switch {
		case n > 0 && f != first:
			t.Fatalf("packet %d comes after %d", f, first)
		case n == 0 && wait <= 0:
			t.Fatal("nothing is due, and there is nothing to wait for")
		}
		first += uint64(n)
	}
	if n := p.sent(); n < 9990 || n > 10000 {
		t.Errorf("%d packets in a second at 10,000/s", n)
	}
	// What was held up is made up for in part only.
	p.set(start, 100000, time.Second)
	before, sum := p.sent(), 0
	for {
		_, n, _ := p.take(start.Add(500*time.Millisecond), 128)
		if n == 0 {
			break
		}
		sum += n
	}
	if sum != 500 || p.sent() != before+500 {
		t.Errorf("%d packets at once after half a second, want those of 5 ms", sum)
	}
}

func made() *result {
	r := &result{Against: variantWireGuard, Samples: []sample{}, Problems: []problem{}, Versions: map[string]string{"nft": "nftables v1"}, Command: "sallyport-bench compare --quick"}
	add := func(variant string, round int, perGB float64, noisy bool) {
		r.Samples = append(r.Samples, sample{Variant: variant, Scenario: "tcp-out", Round: round, Noisy: noisy, Figures: figures{figureProcessGB: perGB}})
	}
	add(variantWireGuard, 1, 2, false)
	add(variantSockets, 1, 1, false)
	add(variantWireGuard, 2, 4, false)
	add(variantSockets, 2, 1, false)
	add(variantWireGuard, 3, 2, false)
	add(variantSockets, 3, 100, true)
	add(variantTun, 1, 5, true)
	r.Samples = append(r.Samples, sample{Variant: variantSockets, Scenario: "udp-out", Round: 1, Figures: figures{figurePeak: 90, figureBound: 1}})
	r.problem(variantTun, "tcp-in", 2, errors.New("it ended"))
	r.sumUp()
	return r
}

func TestRows(t *testing.T) {
	r := made()
	want := []row{
		{Scenario: "tcp-out", Variant: variantWireGuard, Figure: figureProcessGB, Unit: "s/GB", spread: spread{3, 2, 2, 4}},
		{Scenario: "tcp-out", Variant: variantSockets, Figure: figureProcessGB, Unit: "s/GB", spread: spread{2, 1, 1, 1}, Ratio: &spread{2, 0.375, 0.25, 0.5}},
		{Scenario: "tcp-out", Variant: variantTun, Figure: figureProcessGB, Unit: "s/GB", spread: spread{1, 5, 5, 5}, Ratio: &spread{1, 2.5, 2.5, 2.5}, Noisy: true},
		{Scenario: "udp-out", Variant: variantSockets, Figure: figurePeak, Unit: "1000/s", spread: spread{1, 90, 90, 90}, Bound: true},
	}
	got, _ := json.Marshal(r.Rows)
	wanted, _ := json.Marshal(want)
	if !bytes.Equal(got, wanted) {
		t.Errorf("rows\n%s\nwant\n%s", got, wanted)
	}
	text := r.table()
	for _, want := range []string{"1.00 (1.00-1.00)", "0.38x (0.25-0.50)", "5.00 noisy", "at least 90", "NOT MEASURED: tun: tcp-in: round 2: it ended", "2 of 8 measurements noisy"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table has no %q:\n%s", want, text)
		}
	}
	text = r.markdown()
	for _, want := range []string{
		"`sallyport-bench compare --quick`",
		"| TCP, 4 streams, egress: CPU of the process | s/GB | 2.00 (2.00-4.00) | 1.00 (1.00-1.00), 0.38x (0.25-0.50) | 5.00 noisy, 2.50x |",
		"\n- tun: tcp-in: round 2: it ended",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the document has no %q:\n%s", want, text)
		}
	}
	if s := spreadOf([]float64{3, 1, 2, 4}); s != (spread{4, 2.5, 1, 4}) {
		t.Errorf("spread %+v", s)
	}
}

// Whoever sends much again has figures, and the run fails.
func TestResent(t *testing.T) {
	r := &result{}
	lossy := sample{Variant: variantTun, Scenario: "tcp-in", Round: 3, Figures: figures{figureResent: maxResent + 1}}
	if !r.add(sample{Figures: figures{figureResent: maxResent}}) || len(r.Problems) != 0 {
		t.Errorf("few: %v", r.Problems)
	}
	if r.add(lossy) || len(r.Samples) != 2 || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), "tun: tcp-in: round 3: 101 segments") {
		t.Errorf("many: %d measurements, %v", len(r.Samples), r.Problems)
	}
}

func TestReplacePart(t *testing.T) {
	got, err := replacePart("before\n"+beginMark+"old"+endMark+"\nafter", "new\n")
	if want := "before\n" + beginMark + "\n\nnew\n\n" + endMark + "\nafter"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"", beginMark, endMark + beginMark} {
		if _, err := replacePart(text, "new"); err == nil {
			t.Errorf("%q was changed", text)
		}
	}
	text, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replacePart(string(text), "new"); err != nil {
		t.Errorf("docs/benchmarks.md: %v", err)
	}
}

// TestCompare measures shortly. One of the variants does not start: the other's
// figures are reported, and the run fails.
func TestCompare(t *testing.T) {
	netlab.RequireWireGuard(t)
	if netlab.Inside() {
		netlab.NotRun(t, "only root may steer packets to cores")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, comparator), "golang.zx2c4.com/wireguard")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "sallyportd"), []byte("#!/bin/sh\necho a reason\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cfg := valid()
	cfg.Bin, cfg.Out, cfg.JSON, cfg.Report = dir, &out, filepath.Join(dir, "all.json"), filepath.Join(dir, "report.md")
	cfg.Variants, cfg.Scenarios = []string{variantWireGuard, variantSockets}, []string{"tcp-in", "udp-out"}
	if err := cfg.usable(); err != nil {
		netlab.NotRun(t, err.Error())
	}
	if err := os.WriteFile(cfg.Report, []byte(beginMark+endMark), 0o644); err != nil {
		t.Fatal(err)
	}
	err := Run(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "parts could not") || !strings.Contains(out.String(), "a reason") {
		t.Fatalf("%v\n%s", err, out.String())
	}
	b, err := os.ReadFile(cfg.JSON)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	// On a busy machine the other may lose packets, which is said beside its figures.
	if len(r.Samples) != 2 || len(r.Problems) == 0 || r.Problems[0].Variant != variantSockets {
		t.Errorf("%d measurements, problems %v\n%s", len(r.Samples), r.Problems, out.String())
	}
	for _, s := range r.Samples {
		for name, v := range s.Figures {
			if v <= 0 && name != figureLoss && name != figureResent && name != figureVain && name != figureBound {
				t.Errorf("%s: %s is %v", s.Scenario, name, v)
			}
		}
	}
	if text, err := os.ReadFile(cfg.Report); err != nil || !strings.Contains(string(text), "UDP, 64-byte packets of 64 flows, egress: most at 0.1 % loss | 1000/s") {
		t.Errorf("%v: %s", err, text)
	}
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the user has enough"))
	out.Reset()
	if err := Run(ended, cfg); err == nil || !strings.Contains(out.String(), "the user has enough") {
		t.Errorf("after its end: %v\n%s", err, out.String())
	}
}
