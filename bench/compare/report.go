package compare

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/machine"
)

// result is the whole outcome, as JSON has it.
type result struct {
	Date     string            `json:"date"` // UTC
	Command  string            `json:"command"`
	Machine  machine.Facts     `json:"machine"`
	Versions map[string]string `json:"versions"` // by program
	Core     int               `json:"gatewayCore"`
	Rate     int               `json:"smallPacketsPerSecond"`
	Load1    float64           `json:"load1"` // the machine's load average of a minute when it began
	Took     time.Duration     `json:"took"`
	// Against is the variant that the others are compared with.
	Against  string    `json:"against"`
	Samples  []sample  `json:"samples"`
	Rows     []row     `json:"rows"`
	Problems []problem `json:"problems"`

	began time.Time
}

// problem is something that could not be measured.
type problem struct {
	Variant  string `json:"variant,omitempty"`
	Scenario string `json:"scenario,omitempty"`
	Round    int    `json:"round,omitempty"`
	Why      string `json:"why"`
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

// row sums all rounds of a figure up.
type row struct {
	Scenario string `json:"scenario"`
	Variant  string `json:"variant"`
	Figure   string `json:"figure"`
	Unit     string `json:"unit"`
	spread
	// Ratio sums the ratios to the comparator of the same rounds up; nil where there are none.
	Ratio *spread `json:"ratio,omitempty"`
	// Noisy says that noisy rounds had to be taken, as too few were not.
	Noisy bool `json:"noisy,omitempty"`
	// Bound says that in most rounds the source of packets was what could do no more.
	Bound bool `json:"sourceBound,omitempty"`
}

// spread sums values up.
type spread struct {
	Count  int     `json:"count"`
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{n, (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]}
}

func newReport(ctx context.Context, cfg *Config) *result {
	r := &result{
		Command: cfg.Command, Machine: machine.Here(), Core: cfg.Core, Rate: cfg.Rate, Load1: machine.LoadAverage(),
		Versions: map[string]string{"sallyport": cfg.Version, comparator: moduleVersion(cfg.program(comparator))},
		Samples:  []sample{}, Problems: []problem{}, began: time.Now(),
	}
	r.Date = r.began.UTC().Format(time.DateOnly)
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
	r.Problems = append(r.Problems, problem{variant, scenario, round, strings.ReplaceAll(err.Error(), "\n", "; ")})
}

// add takes a measurement in. It reports whether that is one of a way that loses next to
// nothing; else it is a problem, too.
func (r *result) add(s sample) bool {
	r.Samples = append(r.Samples, s)
	n := s.Figures[figureResent]
	if n > maxResent {
		r.problem(s.Variant, s.Scenario, s.Round, fmt.Errorf("%.0f segments per GB were sent again, more than %d: its figures stand, but something loses packets", n, maxResent))
	}
	return n <= maxResent
}

// sumUp fills in the rows.
func (r *result) sumUp() {
	r.Took, r.Rows = time.Since(r.began).Round(time.Second), nil
	for _, s := range scenarios() {
		for _, f := range s.figures {
			for _, v := range Variants() {
				if w, ok := r.row(s, f, v); ok {
					r.Rows = append(r.Rows, w)
				}
			}
		}
	}
}

// row sums a figure up; not ok if there is no measurement.
func (r *result) row(s scenario, f figure, variant string) (w row, ok bool) {
	all := r.rounds(s.name, variant)
	w = row{Scenario: s.name, Variant: variant, Figure: f.name, Unit: f.unit}
	clean := slices.DeleteFunc(slices.Clone(all), func(s sample) bool { return s.Noisy })
	if 2*len(clean) > len(all) {
		all = clean
	} else {
		w.Noisy = true
	}
	var values, ratios []float64
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
			if base := o.Figures[f.name]; o.Round == one.Round && base != 0 && (!o.Noisy || w.Noisy) {
				ratios = append(ratios, v/base)
			}
		}
	}
	w.spread = spreadOf(values)
	if f.compared && variant != r.Against && len(ratios) > 0 {
		ratio := spreadOf(ratios)
		w.Ratio = &ratio
	}
	w.Bound = (f.name == figurePeak || f.name == figurePeakPacket) && 2*bound > len(values)
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

// write writes the report where the user wants it.
func (r *result) write(cfg *Config) error {
	_, err := fmt.Fprint(cfg.Out, "\n"+r.table())
	if cfg.JSON != "" {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetIndent("", "  ")
		err = errors.Join(err, e.Encode(r), document.Replace(cfg.JSON, b.String()))
	}
	if cfg.Report != "" {
		text, rerr := os.ReadFile(cfg.Report)
		if rerr != nil {
			return errors.Join(err, fmt.Errorf("read the file whose part is to be replaced: %w", rerr))
		}
		changed, rerr := replacePart(string(text), r.markdown())
		if rerr != nil {
			return errors.Join(err, fmt.Errorf("%s: %w", cfg.Report, rerr))
		}
		err = errors.Join(err, document.Replace(cfg.Report, changed))
	}
	return err
}
