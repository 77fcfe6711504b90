package compare

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/report"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// result is the whole outcome, as JSON has it: a part of the report, and beside it what
// only compare knows.
type result struct {
	report.Part
	Facts    machine.Facts     `json:"machine"`
	Versions map[string]string `json:"versions"` // by program
	Core     int               `json:"gatewayCore"`
	Rate     int               `json:"smallPacketsPerSecond"`
	Load1    float64           `json:"load1"` // the machine's load average of a minute when it began
	Took     time.Duration     `json:"took"`
	// Against is the variant that the others are compared with.
	Against  string    `json:"against"`
	Samples  []sample  `json:"samples"`
	Problems []problem `json:"problems"`
	// Impossible are variants that this machine cannot have, and why.
	Impossible []problem `json:"impossible,omitempty"`

	began time.Time
}

// problem is something that could not be measured, or what was found by measuring.
type problem struct {
	Variant  string `json:"variant,omitempty"`
	Scenario string `json:"scenario,omitempty"`
	Round    int    `json:"round,omitempty"`
	Why      string `json:"why"`
	// Finding says that it was measured, and that its figures stand.
	Finding bool `json:"finding,omitempty"`
}

func (p problem) String() string {
	var parts []string
	for _, s := range []string{p.Variant, p.Scenario} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if p.Round != 0 {
		parts = append(parts, fmt.Sprint("round ", p.Round))
	}
	return strings.Join(append(parts, p.Why), ": ")
}

func newReport(ctx context.Context, cfg *Config) *result {
	r := &result{
		Part:  report.Part{Name: cfg.output().Name("compare"), Title: cfg.Title, Command: cfg.Command},
		Facts: machine.Here(), Core: cfg.Core, Rate: cfg.Rate, Load1: machine.LoadAverage(),
		Versions: map[string]string{"sallyport": cfg.Version, comparator: moduleVersion(cfg.program(comparator))},
		Samples:  []sample{}, Problems: []problem{}, began: time.Now(),
	}
	r.Date, r.Machine = r.began.UTC().Format(time.DateOnly), r.Facts.String()
	for name, args := range map[string][]string{"iperf3": {"--version"}, "nft": {"--version"}} {
		out, _ := exec.CommandContext(ctx, name, args...).Output()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		r.Versions[name] = cmp.Or(first, "unknown")
	}
	for _, v := range cfg.Variants {
		if v != variantDirect {
			r.Against = v
			break
		}
	}
	return r
}

// moduleVersion is that of the module that holds a Go program.
func moduleVersion(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for _, m := range info.Deps {
		if strings.HasPrefix(info.Path, m.Path) {
			return m.Version + ", " + info.GoVersion
		}
	}
	return cmp.Or(info.Main.Version, "unknown") + ", " + info.GoVersion
}

func (r *result) problem(variant, scenario string, round int, err error) {
	r.Problems = append(r.Problems, problem{variant, scenario, round, strings.ReplaceAll(err.Error(), "\n", "; "), false})
}

// finding notes what a gateway should not do, and did.
func (r *result) finding(s sample, err error) {
	r.problem(s.Variant, s.Scenario, s.Round, err)
	r.Problems[len(r.Problems)-1].Finding = true
}

// add takes a measurement in. It reports whether that is one of a gateway that loses next to
// nothing and answers rightly; else it is a problem, too.
func (r *result) add(s sample) bool {
	r.Samples = append(r.Samples, s)
	known := len(r.Problems)
	if n := s.Figures[figureResent]; n > maxResent {
		r.finding(s, fmt.Errorf("%.0f segments per GB were sent again, more than %d: its figures stand, but something loses packets", n, maxResent))
	}
	if n := s.Figures[figureWrong]; n > 0 {
		r.finding(s, fmt.Errorf("%.0f packets or connections came from or to a wrong address, or damaged: its figures stand, but it does not do the same work", n))
	}
	return len(r.Problems) == known
}

// sumUp fills in what the report shows.
func (r *result) sumUp() {
	r.Took, r.Figures = time.Since(r.began).Round(time.Second), nil
	r.Variants = map[string]string{}
	for _, s := range scenarios() {
		for _, f := range s.figures {
			row := report.Figure{ID: s.name + "/" + f.name, What: s.title + ": " + f.title, Unit: f.unit, Digits: f.digits}
			for _, v := range Variants() {
				if value, ok := r.value(s, f, v); ok {
					row.Values = append(row.Values, value)
					r.Variants[v] = variantTitle(v)
				}
			}
			if len(row.Values) > 0 {
				r.Figures = append(r.Figures, row)
			}
		}
	}
	r.Missing = nil
	for _, p := range slices.Concat(r.Impossible, r.Problems) {
		r.Missing = append(r.Missing, p.String())
	}
	r.Conditions = r.conditions()
}

// value sums a figure up; not ok if there is no measurement. What must not happen counts
// in noisy rounds, too. There is no ratio to a peak that was the harness's own.
func (r *result) value(s scenario, f figure, variant string) (w report.Value, ok bool) {
	all := r.rounds(s.name, variant)
	w.Variant = variant
	clean := slices.DeleteFunc(slices.Clone(all), func(s sample) bool { return s.Noisy })
	switch {
	case f.name == figureWrong || f.name == figureShortFailed:
	case 2*len(clean) > len(all):
		all = clean
	default:
		w.Noisy = true
	}
	atPeak := slices.Contains([]string{figurePeak, figurePeakPacket, figureShortPeak, figureShortPeakCPU, figureShortPeakAll}, f.name)
	var values, ratios, more []float64
	bound := 0
	for _, one := range all {
		v, has := one.Figures[f.name]
		if !has {
			continue
		}
		values = append(values, v)
		if one.Figures[figureBound] != 0 {
			bound++
		}
		for _, o := range r.rounds(s.name, r.Against) {
			base, has := o.Figures[f.name]
			if !has || o.Round != one.Round || o.Noisy && !w.Noisy || atPeak && o.Figures[figureBound] != 0 {
				continue
			}
			more = append(more, v-base)
			if base != 0 {
				ratios = append(ratios, v/base)
			}
		}
	}
	w.Spread = report.SpreadOf(values)
	if variant != r.Against {
		w.Ratio, w.More = f.against.of(ratios, more)
	}
	w.Bound = atPeak && 2*bound > len(values)
	return w, len(values) > 0
}

func (r *result) rounds(scenario, variant string) (list []sample) {
	for _, s := range r.Samples {
		if s.Scenario == scenario && s.Variant == variant {
			list = append(list, s)
		}
	}
	return list
}

// conditions says what it was measured with.
func (r *result) conditions() (list []string) {
	list = append(list, fmt.Sprintf("the gateway on core %d of %d", r.Core, r.Facts.Cores))
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		list = append(list, name+" "+strings.TrimPrefix(strings.TrimPrefix(r.Versions[name], "iperf "), "nftables "))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Facts.Settings)) {
		list = append(list, name+" "+r.Facts.Settings[name])
	}
	noisy, rounds := 0, 0
	disturbed, stolen := 0.0, 0.0 // the most
	for _, s := range r.Samples {
		if s.Noisy {
			noisy++
		}
		disturbed, stolen = max(disturbed, s.Disturbed), max(stolen, s.Stolen)
		rounds = max(rounds, s.Round)
	}
	return append(list, fmt.Sprintf("medians of %s (least-most), ratios to %s in the same rounds", trial.Plural(rounds, "round"), r.Against),
		fmt.Sprintf("small packets at %d/s", r.Rate),
		fmt.Sprintf("load average %.2f at the start", r.Load1), fmt.Sprintf("%d of %d measurements noisy: core %d was at most %.1f %% in use before one, and at most %.1f %% of all cores' time went to others",
			noisy, len(r.Samples), r.Core, 100*disturbed, 100*stolen))
}

// write writes the report where the user wants it.
func (r *result) write(cfg *Config) error {
	_, err := fmt.Fprint(cfg.Out, "\n"+r.Table())
	whole := !slices.ContainsFunc(r.Problems, func(p problem) bool { return !p.Finding })
	return errors.Join(err, cfg.output().Write(r, whole))
}
