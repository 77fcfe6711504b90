package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/report"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// programs are the comparator's.
var programs = netlab.NewPlainPrograms("golang.zx2c4.com/wireguard")

// TestMain is also the gateway of WireGuard and gVisor, when it is called as one.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == GVisorCommand {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := GVisor(ctx, os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	os.Exit(netlab.Enter(programs.Around(m)))
}

func valid() Config {
	return Config{Variants: Variants(), Scenarios: Scenarios(), Rounds: 1, Bulk: time.Second, Rate: 20000, Try: 100 * time.Millisecond}
}

func TestConfig(t *testing.T) {
	ok := valid()
	if err := ok.validate(); err != nil {
		t.Error(err)
	}
	ok.Variants, ok.Scenarios = []string{variantTun, variantSockets, variantTun}, []string{"udp-in", "udp-in"}
	if err := ok.validate(); err != nil || !slices.Equal(ok.Variants, []string{variantTun, variantSockets}) || len(ok.Scenarios) != 1 {
		t.Errorf("named twice: %q, %q, %v", ok.Variants, ok.Scenarios, err)
	}
	for want, spoil := range map[string]func(*Config){
		"no variant": func(c *Config) { c.Variants = []string{"magic"} },
		"another variant": func(c *Config) {
			c.Variants, c.Scenarios = []string{variantDirect}, []string{"tcp-out", "latency-half"}
		},
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
	for _, want := range []string{"nothing can be compared here", "sallyportd", "wireguard-go", "make comparator", "core 63"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func made() *result {
	r := &result{Part: report.Part{Command: "sallyport-bench compare --quick", Machine: "a machine"}, Against: variantWireGuard,
		Samples: []sample{}, Problems: []problem{}, Versions: map[string]string{"nft": "nftables v1"}}
	add := func(variant, scenario string, round int, noisy bool, f figures) {
		r.Samples = append(r.Samples, sample{Variant: variant, Scenario: scenario, Round: round, Noisy: noisy, Figures: f})
	}
	add(variantWireGuard, "tcp-out", 1, false, figures{figureProcessGB: 2})
	add(variantSockets, "tcp-out", 1, false, figures{figureProcessGB: 1})
	add(variantWireGuard, "tcp-out", 2, false, figures{figureProcessGB: 4})
	add(variantSockets, "tcp-out", 2, false, figures{figureProcessGB: 1})
	add(variantWireGuard, "tcp-out", 3, false, figures{figureProcessGB: 2})
	add(variantSockets, "tcp-out", 3, true, figures{figureProcessGB: 100})
	add(variantTun, "tcp-out", 1, true, figures{figureProcessGB: 5})
	add(variantSockets, "udp-out", 1, false, figures{figurePeak: 90, figureBound: 1})
	r.problem(variantTun, "tcp-in", 2, errors.New("it ended"))
	r.Impossible = append(r.Impossible, problem{Variant: variantKernel, Why: "not here"})
	r.sumUp()
	return r
}

// What is noisy counts only where there is little else, and ratios are of one round.
func TestSumUp(t *testing.T) {
	r := made()
	one := func(v float64) report.Spread { return report.Spread{Count: 1, Median: v, Least: v, Most: v} }
	ratio := one(2.5)
	want := []report.Figure{
		{ID: "tcp-out/processPerGB", What: "TCP, 4 streams, egress: CPU of the process", Unit: "s/GB", Digits: 2, Values: []report.Value{
			{Variant: variantWireGuard, Spread: report.Spread{Count: 3, Median: 2, Least: 2, Most: 4}},
			{Variant: variantSockets, Spread: report.Spread{Count: 2, Median: 1, Least: 1, Most: 1}, Ratio: &report.Spread{Count: 2, Median: 0.375, Least: 0.25, Most: 0.5}},
			{Variant: variantTun, Spread: one(5), Ratio: &ratio, Noisy: true},
		}},
		{ID: "udp-out/peak", What: "UDP, 64-byte packets of 64 flows, egress: most at 0.1 % loss", Unit: "1000/s", Values: []report.Value{
			{Variant: variantSockets, Spread: one(90), Bound: true},
		}},
	}
	got, _ := json.Marshal(r.Figures)
	wanted, _ := json.Marshal(want)
	if !bytes.Equal(got, wanted) {
		t.Errorf("figures\n%s\nwant\n%s", got, wanted)
	}
	if got, want := r.Missing, []string{"kernel: not here", "tun: tcp-in: round 2: it ended"}; !slices.Equal(got, want) {
		t.Errorf("missing %q, want %q", got, want)
	}
	if text := strings.Join(r.Conditions, "; "); !strings.Contains(text, "2 of 8 measurements noisy") || !strings.Contains(text, "nft v1") {
		t.Errorf("conditions %s", text)
	}
	if len(r.Variants) != 3 {
		t.Errorf("variants %v", r.Variants)
	}
}

// What must not happen counts in noisy rounds, too, and there is no ratio to a peak that was
// the source's.
func TestSumUpWrong(t *testing.T) {
	r := made()
	for round, noisy := range []bool{false, false, true} {
		for _, v := range []string{variantWireGuard, variantTun} {
			r.Samples = append(r.Samples, sample{Variant: v, Scenario: "udp-in", Round: round, Noisy: noisy, Figures: figures{figureWrong: float64(round), figurePeak: 100, figureLoss: float64(round)}})
		}
	}
	r.Samples[len(r.Samples)-6].Figures[figureBound] = 1 // the comparator's of round 0
	r.sumUp()
	want := map[string]report.Value{
		figureWrong: {Spread: report.Spread{Count: 3, Median: 1, Most: 2}},
		figureLoss:  {Spread: report.Spread{Count: 2, Median: 0.5, Most: 1}},
		figurePeak:  {Spread: report.Spread{Count: 2, Median: 100, Least: 100, Most: 100}, Ratio: &report.Spread{Count: 1, Median: 1, Least: 1, Most: 1}},
	}
	for _, f := range r.Figures {
		name, ok := strings.CutPrefix(f.ID, "udp-in/")
		if !ok {
			continue
		}
		w := want[name]
		w.Variant = variantTun
		got, _ := json.Marshal(f.Values[1])
		if wanted, _ := json.Marshal(w); !bytes.Equal(got, wanted) {
			t.Errorf("%s\n%s\nwant\n%s", name, got, wanted)
		}
		delete(want, name)
	}
	if len(want) != 0 {
		t.Errorf("without %v", want)
	}
}

// Whoever sends much again, or answers wrongly, has figures, and the run fails.
func TestResent(t *testing.T) {
	r := &result{}
	lossy := sample{Variant: variantTun, Scenario: "tcp-in", Round: 3, Figures: figures{figureResent: maxResent + 1}}
	if !r.add(sample{Figures: figures{figureResent: maxResent}}) || len(r.Problems) != 0 {
		t.Errorf("few: %v", r.Problems)
	}
	if r.add(lossy) || len(r.Samples) != 2 || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), "tun: tcp-in: round 3: 101 segments") {
		t.Errorf("many: %d measurements, %v", len(r.Samples), r.Problems)
	}
	wrong := sample{Variant: variantTun, Scenario: "udp-in", Round: 1, Figures: figures{figureWrong: 7}}
	if r.add(wrong) || len(r.Samples) != 3 || len(r.Problems) != 2 || !strings.Contains(r.Problems[1].String(), "tun: udp-in: round 1: 7 packets or connections came from") {
		t.Errorf("wrong: %d measurements, %v", len(r.Samples), r.Problems)
	}
}

// What a gateway did wrong is measured, and goes to the file; what could not be measured
// leaves a file that is to stay whole as it was.
func TestWriteWhole(t *testing.T) {
	dir := t.TempDir()
	for name, beside := range map[string]bool{"finding": false, "problem": true} {
		cfg := Config{Out: io.Discard, JSON: filepath.Join(dir, name+".json"), Whole: true}
		r := &result{}
		r.add(sample{Variant: variantTun, Scenario: "udp-in", Round: 1, Figures: figures{figureWrong: 7}})
		if beside {
			r.problem(variantTun, "tcp-in", 2, errors.New("it ended"))
		}
		err := r.write(&cfg)
		if _, gone := os.Stat(cfg.JSON); beside != (err != nil) || beside != os.IsNotExist(gone) {
			t.Errorf("%s: %v, the file: %v", name, err, gone)
		}
		if _, gone := os.Stat(cfg.output().Partial()); beside == os.IsNotExist(gone) {
			t.Errorf("%s: the file beside it: %v", name, gone)
		}
	}
	cfg := valid()
	cfg.JSON = filepath.Join(dir, "none", "x.json")
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "--json: ") {
		t.Errorf("a file that cannot be written: %v", err)
	}
}

// TestCompare measures shortly. One of the variants does not start, and one may not be
// possible: the others' figures are reported, and the run fails.
func TestCompare(t *testing.T) {
	netlab.RequireWireGuard(t)
	if netlab.Inside() {
		netlab.NotRun(t, "only root may steer packets to cores")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{comparator: filepath.Join(programs.Build(t), "wireguard"), harness: self} {
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sallyportd"), []byte("#!/bin/sh\necho a reason\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cfg := valid()
	cfg.attempts = 1 // the machine may be busy
	cfg.Progress = &out
	cfg.Bin, cfg.Out, cfg.JSON, cfg.Command = dir, &out, filepath.Join(dir, "all.json"), "compare"
	cfg.Variants, cfg.Scenarios = []string{variantWireGuard, variantGVisor, variantSockets}, []string{"tcp-in", "udp-out"}
	if err := cfg.usable(); err != nil {
		netlab.NotRun(t, err.Error())
	}
	err = Run(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), " problem") || !strings.Contains(out.String(), "a reason") {
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
	// One with gVisor, slow with the race detector, may not carry the rate.
	if len(r.Samples) < 3 || len(r.Problems) == 0 || r.Problems[0].Variant != variantSockets {
		t.Errorf("%d measurements, problems %v\n%s", len(r.Samples), r.Problems, out.String())
	}
	for _, s := range r.Samples {
		if s.Attempts != 1 {
			t.Errorf("%s of %s: measured %d times", s.Scenario, s.Variant, s.Attempts)
		}
		if _, peak := s.Figures[figurePeak]; peak != (s.Limit != nil) {
			t.Errorf("%s of %s: its limit is %v", s.Scenario, s.Variant, s.Limit)
		}
		for name, v := range s.Figures {
			if v <= 0 && name != figureLoss && name != figureResent && name != figureVain && name != figureBound && name != figureWrong {
				t.Errorf("%s: %s is %v", s.Scenario, name, v)
			}
		}
	}
	part, err := report.Read("all", bytes.NewReader(b))
	if err != nil || part.Name != "all" || !slices.ContainsFunc(part.Figures, func(f report.Figure) bool { return f.ID == "udp-out/processPerPacket" }) {
		t.Errorf("the part of the report: %v, %+v", err, part)
	}
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the user has enough"))
	out.Reset()
	cfg.Progress = nil // the table tells it, too
	if err := Run(ended, cfg); err == nil || !strings.Contains(out.String(), "NOTE: the user has enough") || strings.Contains(out.String(), "starting") {
		t.Errorf("after its end: %v\n%s", err, out.String())
	}
}
