package report

import (
	"fmt"
	"slices"
	"time"
)

// scenarioRun is what `sallyport-bench run --json` writes, as far as it is read here: one
// run of scenarios, each of them some steps.
type scenarioRun struct {
	Date      time.Time `json:"date"`
	Command   string    `json:"command"`
	Sallyport string    `json:"sallyport"`
	Machine   struct {
		Line string `json:"line"`
	} `json:"machine"`
	Load1   float64 `json:"load1"`
	Gateway struct {
		Kind, Uplink string
	} `json:"gateway"`
	Scenarios []struct {
		Name, Title string
		NotRun      string
		Problems    []string
		Steps       []scenarioStep
	} `json:"scenarios"`
	Problems []string `json:"problems"`
}

// scenarioStep is one measurement.
type scenarioStep struct {
	Name    string
	Figures map[string]float64
	Latency *struct{ P50, P90, P99, P999, Max float64 }
	Sources *struct {
		Wrong   float64
		Checked bool
	}
	Refused      bool
	Marks, Wrong []string
}

// scenarioFigure is how a figure of a step is read.
type scenarioFigure struct {
	name, what, unit string
	digits           int
}

// scenarioFigures are those that are taken over, by their names in the run.
func scenarioFigures() []scenarioFigure {
	return []scenarioFigure{
		{"rate", "arrived, answered or done", "/s", 0},
		{"gbps", "throughput", "Gbit/s", 2},
		{"lossPercent", "lost", "%", 3},
		{"peakRate", "most", "/s", 0},
		{"failed", "failed", "", 0},
		{"processMicros", "CPU of the process", "us each", 2},
		{"coreMicros", "CPU of the core", "us each", 2},
		{"processSecondsGB", "CPU of the process", "s/GB", 2},
		{"coreSecondsGB", "CPU of the core", "s/GB", 2},
		{"attached", "attached", "/s", 0},
		{"attachMillisP50", "attach, p50", "ms", 1},
		{"attachMillisP99", "attach, p99", "ms", 1},
		{"firstByteMillisP50", "attach to the first answered byte, p50", "ms", 1},
		{"firstByteMillisP99", "attach to the first answered byte, p99", "ms", 1},
		{"gatewayMiB", "resident memory of the gateway", "MiB", 0},
		{"p50", "answered, p50", "us", 0},
		{"p99", "answered, p99", "us", 0},
		{"wrongSources", "addresses that packets had and should not", "", 0},
	}
}

// values are a step's figures, those of latency and sources among them.
func (s *scenarioStep) values() map[string]float64 {
	all := map[string]float64{}
	for name, v := range s.Figures {
		all[name] = v
	}
	if s.Latency != nil {
		all["p50"], all["p99"] = s.Latency.P50, s.Latency.P99
	}
	if s.Sources != nil && s.Sources.Checked {
		all["wrongSources"] = s.Sources.Wrong
	}
	return all
}

// part makes a part of a run. A figure's ID is the scenario's name and the figure's, its
// variants are the steps.
func (r *scenarioRun) part(name string) *Part {
	p := &Part{Name: name, Command: r.Command, Date: r.Date.UTC().Format(time.DateOnly), Machine: r.Machine.Line,
		Conditions: []string{"uplink " + r.Gateway.Uplink, "sallyport " + r.Sallyport, fmt.Sprintf("load average %.2f at the start", r.Load1)},
		Missing:    slices.Clone(r.Problems)}
	for _, o := range r.Scenarios {
		if p.Title == "" {
			p.Title = o.Title
		}
		if o.NotRun != "" {
			p.Missing = append(p.Missing, o.Name+": "+o.NotRun)
		}
		for _, text := range o.Problems {
			p.Missing = append(p.Missing, o.Name+": "+text)
		}
		for _, s := range o.Steps {
			for _, text := range slices.Concat(s.Wrong, s.Marks) {
				p.Missing = append(p.Missing, o.Name+": "+s.Name+": "+text)
			}
		}
		for _, f := range scenarioFigures() {
			row := Figure{ID: o.Name + "/" + f.name, What: o.Title + ": " + f.what, Unit: f.unit, Digits: f.digits}
			for _, s := range o.Steps {
				if v, ok := s.values()[f.name]; ok {
					row.Values = append(row.Values, Value{Variant: s.Name, Spread: SpreadOf([]float64{v}), Noisy: s.Refused})
				}
			}
			if len(row.Values) > 0 {
				p.Figures = append(p.Figures, row)
			}
		}
	}
	return p
}
