package scenario

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// resultVersion is that of the JSON document. It grows when a field changes its meaning
// or goes; new fields do not change it.
const resultVersion = 1

// result is the whole outcome, as JSON has it.
type result struct {
	Version   int           `json:"version"`
	Date      time.Time     `json:"date"` // when it began, UTC
	Command   string        `json:"command"`
	Sallyport string        `json:"sallyport"` // version of this program
	Machine   machine.Facts `json:"machine"`   // the harness's
	Load1     float64       `json:"load1"`     // its load average of a minute when it began
	Gateway   about         `json:"gateway"`
	Seconds   float64       `json:"seconds"`
	Again     again         `json:"again"`
	Scenarios []*outcome    `json:"scenarios"`
	// Problems are what ended the run, or kept scenarios from running. What was
	// wrong in one step stands there.
	Problems []string `json:"problems"`
}

// again is how often noisy steps may be measured again, and were.
type again struct {
	Allowed int `json:"allowed"`
	Used    int `json:"used"`
}

// about is what was measured.
type about struct {
	// Kind is how the harness reached it: chain, api or wireguard.
	Kind     string         `json:"kind"`
	Uplink   string         `json:"uplink,omitempty"` // of a chain
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
	// Pair are the addresses that sandboxes may leave from; empty: nobody said them.
	Pair []netip.Addr   `json:"pair"`
	Far  netip.AddrPort `json:"far"`
	// CPU says whose time is counted: "process 4711 (sallyportd) and core 0", one of both,
	// "process by its metrics, ...", or "none".
	CPU string `json:"cpu"`
}

// outcome is what came of a scenario.
type outcome struct {
	Name  string  `json:"name"`
	Title string  `json:"title"`
	Steps []*step `json:"steps"`
	// NotRun says why the scenario was left out, where that is no failure.
	NotRun string `json:"notRun,omitempty"`
	// Problems are why the scenario ended before its end.
	Problems []string `json:"problems,omitempty"`

	place string // in the run, for people
	once  bool   // nothing of it is measured again
}

// step is one measurement.
type step struct {
	Name string `json:"name"`
	// At is when it began, in seconds since the run did.
	At   float64 `json:"at"`
	Load load    `json:"load"`
	// Figures are there as far as they could be measured; see [figures].
	Figures values   `json:"figures"`
	Latency *latency `json:"latency,omitempty"`
	Series  []series `json:"series,omitempty"`
	Sources *sources `json:"sources,omitempty"`
	Noise   noise    `json:"noise"`
	// Limit is why a step that looks for the highest rate found no higher one.
	Limit *trial.Limit `json:"limit,omitempty"`
	// Attempts is how often it was measured to its end, as it was noisy before: the last counts,
	// and what a gateway must not do in any. 0: it broke off the first time, or was left out.
	Attempts int `json:"attempts"`
	// Refused says that figures were thrown away for the noise (--strict).
	Refused bool `json:"refused,omitempty"`
	// Broken says that it did not come to its end: what figures there are, are of the time
	// until then. A step that the user interrupted has none.
	Broken bool `json:"broken,omitempty"`
	// Marks are why the figures are to be read with care.
	Marks []string `json:"marks,omitempty"`
	// Beside is what was measured besides.
	Beside []string `json:"beside,omitempty"`
	// Wrong is what a gateway must not do, and did.
	Wrong []string `json:"wrong,omitempty"`

	lasting []string // what of Wrong counts if it is measured again
	bound   bool     // its limit is not the gateway's own
	spent   bool     // it is noisy, and the run has no repeats left
}

// load is what was offered.
type load struct {
	Rate      float64 `json:"rate,omitempty"`      // per second: packets, connections, requests or attaches
	Size      int     `json:"size,omitempty"`      // of packets, in bytes from the IP header on
	Sandboxes int     `json:"sandboxes,omitempty"` // that took part
	Flows     int     `json:"flows,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
}

// values are figures by name.
type values map[string]float64

// latency is how long something took, in microseconds.
type latency struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50"`
	// These are left out where less than 2 values lie beyond: P99 takes 200 of them.
	P90  float64 `json:"p90,omitempty"`
	P99  float64 `json:"p99,omitempty"`
	P999 float64 `json:"p999,omitempty"`
	Max  float64 `json:"max"`
	// Quantiles are pairs of a part of all, from 0 to 1, and the most it took.
	Quantiles [][2]float64 `json:"quantiles"`
}

// beyond is how many values must lie beyond a quantile for it to be told.
const beyond = 2

func latencyOf(h *histogram.Histogram) *latency {
	if h == nil || h.Count() == 0 {
		return nil
	}
	at := func(q float64) float64 { return trial.Micros(h.Quantile(q)) }
	known := func(q float64) bool { return (1-q)*float64(h.Count()) > beyond-1e-9 }
	l := &latency{Count: h.Count(), P50: at(0.5), Max: trial.Micros(h.Max())}
	for q, v := range map[float64]*float64{0.9: &l.P90, 0.99: &l.P99, 0.999: &l.P999} {
		if known(q) {
			*v = at(q)
		}
	}
	for _, q := range []float64{0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999} {
		if q <= 0.5 || known(q) {
			l.Quantiles = append(l.Quantiles, [2]float64{q, at(q)})
		}
	}
	l.Quantiles = append(l.Quantiles, [2]float64{1, l.Max})
	return l
}

// series is a figure over time.
type series struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Points are pairs of seconds since the step began and a value.
	Points [][2]float64 `json:"points"`
}

// sources is where packets came from, as the far side saw it.
type sources struct {
	Seen []netip.Addr `json:"seen"`
	// More is how many addresses it saw beyond those that it tells.
	More uint64 `json:"more,omitempty"`
	// Wrong counts addresses that are none of the pair.
	Wrong uint64 `json:"wrong"`
	// Checked is false where nobody said what the pair is.
	Checked bool `json:"checked"`
}

// fail notes what a gateway must not do.
func (s *step) fail(format string, args ...any) {
	s.Wrong = append(s.Wrong, fmt.Sprintf(format, args...))
}

// also notes what was measured beside the figures.
func (s *step) also(format string, args ...any) {
	s.Beside = append(s.Beside, fmt.Sprintf(format, args...))
}

// mark notes why the figures are to be read with care.
func (s *step) mark(format string, args ...any) {
	s.Marks = append(s.Marks, fmt.Sprintf(format, args...))
}

// breakOff notes that a step did not come to its end.
func (s *step) breakOff(interrupted bool) {
	s.Broken = true
	if !interrupted {
		s.mark("BROKEN OFF: its figures, if any, are of the time until then")
		return
	}
	s.Figures, s.Latency, s.Series, s.Limit, s.Noise = values{}, nil, nil, nil, noise{}
	s.mark("INTERRUPTED: what was measured of it is left out")
}

func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

// faults counts what makes the exit code differ from 0. What ended a scenario and with it the run
// counts once.
func (r *result) faults() (n int) {
	n = len(r.Problems)
	for _, o := range r.Scenarios {
		for _, p := range o.Problems {
			if !slices.Contains(r.Problems, p) {
				n++
			}
		}
		for _, s := range o.Steps {
			n += len(s.Wrong)
			if s.Refused {
				n++
			}
		}
	}
	return n
}

// whole says that all that was asked for was measured, whatever came of it. A step without a
// figure says why it was not.
func (r *result) whole(cfg *Config) bool {
	if len(r.Problems) > 0 {
		return false
	}
	ended := map[string]bool{}
	for _, o := range r.Scenarios {
		cut := slices.ContainsFunc(o.Steps, func(s *step) bool { return s.Broken || s.Refused || len(s.Figures) == 0 })
		ended[o.Name] = o.NotRun == "" && len(o.Problems) == 0 && !cut
	}
	return !slices.ContainsFunc(cfg.Scenarios, func(name string) bool { return !ended[name] })
}

// A figure's names in JSON say its unit. The order is that of the reports.
const (
	figureRate        = "rate"             // per second, arrived, answered, or done
	figureGbps        = "gbps"             // Gbit/s of payload (TCP) or of IP packets
	figureLoss        = "lossPercent"      // of what was sent
	figurePeak        = "peakRate"         // the highest rate that passes
	figureFailed      = "failed"           // connections, requests or attaches
	figureResent      = "resentPerGB"      // TCP segments of the harness
	figureProcess     = "processMicros"    // of the gateway's process, per packet or connection
	figureCore        = "coreMicros"       // of the gateway's core
	figureProcessGB   = "processSecondsGB" // per GB
	figureCoreGB      = "coreSecondsGB"
	figureBusy        = "coreBusyPercent" // of the gateway's core
	figureDuplicates  = "duplicates"
	figureReordered   = "reordered"
	figureDamaged     = "damaged"
	figureAttachP50   = "attachMillisP50"
	figureAttachP99   = "attachMillisP99"
	figureReady       = "firstByteMillisP50"
	figureReadyP99    = "firstByteMillisP99"
	figureAttached    = "attached"
	figureMemory      = "gatewayMiB" // resident memory of the gateway's process
	figureFailoverP50 = "failoverMillisP50"
	figureFailoverP99 = "failoverMillisP99"
	figureFailoverMax = "failoverMillisMax"
)

// figure says how people read one.
type figure struct {
	name, title string
	digits      int
}

func figures() []figure {
	return []figure{
		{figureRate, "per second", 0},
		{figureGbps, "Gbit/s", 2},
		{figureLoss, "lost, %", 3},
		{figurePeak, "most per second", 0},
		{figureFailed, "failed", 0},
		{figureResent, "sent again per GB", 0},
		{figureProcess, "process, us each", 2},
		{figureCore, "core, us each", 2},
		{figureProcessGB, "process, s/GB", 2},
		{figureCoreGB, "core, s/GB", 2},
		{figureBusy, "core busy, %", 0},
		{figureDuplicates, "duplicates", 0},
		{figureReordered, "out of order", 0},
		{figureDamaged, "damaged", 0},
		{figureAttached, "attached", 0},
		{figureAttachP50, "attach p50, ms", 1},
		{figureAttachP99, "attach p99, ms", 1},
		{figureReady, "first byte p50, ms", 1},
		{figureReadyP99, "first byte p99, ms", 1},
		{figureMemory, "memory, MiB", 0},
		{figureFailoverP50, "answered again p50, ms", 0},
		{figureFailoverP99, "answered again p99, ms", 0},
		{figureFailoverMax, "answered again at last, ms", 0},
	}
}
