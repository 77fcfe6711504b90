package compare

import (
	"context"
	"fmt"
	"strings"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/report"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// The figures that there are.
const (
	figureThroughput    = "throughput"
	figureProcessGB     = "processPerGB"
	figureCoreGB        = "corePerGB"
	figureResent        = "resentPerGB"
	figureProcessPacket = "processPerPacket"
	figureCorePacket    = "corePerPacket"
	figureLoss          = "loss"
	figurePeak          = "peak"
	figurePeakPacket    = "corePerPacketAtPeak"
	figureBound         = "sourceBound"
	figureVain          = "vainAttempts" // of iperf3
	figureWrong         = "wrongPackets"
	figureP50           = "p50"
	figureP99           = "p99"
	figureEchoRate      = "requests"
	figureBusy          = "busy"
)

// figure is a kind of figure.
type figure struct {
	name, title, unit string
	against           against
	digits            int
	column            string // its heading while measurements come
}

// against is how a figure stands beside the comparator's.
type against uint8

const (
	alone   against = iota // not at all
	byRatio                // as a multiple
	byMore                 // as what it is above it
)

func (a against) of(ratios, more []float64) (ratio, above *report.Spread) {
	switch {
	case a == byRatio && len(ratios) > 0:
		s := report.SpreadOf(ratios)
		return &s, nil
	case a == byMore && len(more) > 0:
		s := report.SpreadOf(more)
		return nil, &s
	}
	return nil, nil
}

func bulkFigures() []figure {
	return []figure{
		{figureProcessGB, "CPU of the process", "s/GB", byRatio, 2, "process s/GB"},
		{figureCoreGB, "CPU of the core", "s/GB", byRatio, 2, "core s/GB"},
		{figureThroughput, "throughput", "Gbit/s", byRatio, 2, "Gbit/s"},
		{figureResent, "segments sent again", "per GB", alone, 0, "resent per GB"},
		{figureWrong, "connections from a wrong address", "", alone, 0, "wrong"},
	}
}

func datagramFigures() []figure {
	return []figure{
		{figureProcessPacket, "CPU of the process", "us/packet", byRatio, 2, "process us"},
		{figureCorePacket, "CPU of the core", "us/packet", byRatio, 2, "core us"},
		{figureLoss, "lost at that rate", "%", alone, 3, "lost, %"},
		{figurePeak, "most at 0.1 % loss", "1000/s", byRatio, 0, "peak k/s"},
		{figurePeakPacket, "CPU of the core then", "us/packet", byRatio, 2, "core us then"},
		{figureWrong, "packets from or to a wrong address, or damaged", "", alone, 0, "wrong"},
	}
}

func latencyFigures() []figure {
	return []figure{
		{figureP50, "p50", "us", byMore, 0, "p50 us"},
		{figureP99, "p99", "us", byMore, 0, "p99 us"},
		{figureLoss, "not answered", "%", alone, 3, "lost, %"},
		{figureEchoRate, "requests", "1000/s", alone, 1, "asked k/s"},
		{figureBusy, "the gateway's core in use", "%", alone, 0, "core %"},
		{figureWrong, "packets from or to a wrong address, or damaged", "", alone, 0, "wrong"},
	}
}

// figures are those of one measurement, by name.
type figures map[string]float64

// scenario is something that is measured.
type scenario struct {
	name, title string
	// tunnelled says that it needs a tunnel.
	tunnelled bool
	figures   []figure
	run       measure
}

// measure measures a scenario once. It says what limited the highest rate, if it looked for that.
// With an error there may be some figures all the same.
type measure func(ctx context.Context, c *chain, cfg *Config) (figures, *trial.Limit, error)

// withoutPeak is a measurement that looks for no highest rate.
func withoutPeak(run func(ctx context.Context, c *chain, cfg *Config) (figures, error)) measure {
	return func(ctx context.Context, c *chain, cfg *Config) (figures, *trial.Limit, error) {
		f, err := run(ctx, c, cfg)
		return f, nil, err
	}
}

func scenarios() []scenario {
	return []scenario{
		bulkScenario("tcp-out", "egress", false), bulkScenario("tcp-in", "ingress", true),
		datagramScenario("udp-out", "egress", way{false, smallSize}), datagramScenario("udp-in", "ingress", way{true, smallSize}),
		datagramScenario("udp1420-out", "egress", way{false, largeSize}), datagramScenario("udp1420-in", "ingress", way{true, largeSize}),
		{"latency-idle", fmt.Sprintf("request and answer, %d bytes, idle", echoSize), true, latencyFigures(), withoutPeak(latencyIdle)},
		{"latency-half", fmt.Sprintf("request and answer, %d bytes, half of the comparator's load", echoSize), true, latencyFigures(), withoutPeak(latencyHalf)},
		{"connections", fmt.Sprintf("short TCP connections to %d destinations", destinations), true, shortFigures(), spread1000},
		{"connections-one", "short TCP connections to one destination", true, shortFigures(), single},
	}
}

func bulkScenario(name, direction string, in bool) scenario {
	return scenario{name, fmt.Sprintf("TCP, %d streams, %s", streams, direction), false, bulkFigures(), withoutPeak(func(ctx context.Context, c *chain, cfg *Config) (figures, error) {
		return bulk(ctx, c, cfg, in)
	})}
}

func datagramScenario(name, direction string, w way) scenario {
	return scenario{name, fmt.Sprintf("UDP, %d-byte packets of %d flows, %s", w.size, flows, direction), true, datagramFigures(), func(ctx context.Context, c *chain, cfg *Config) (figures, *trial.Limit, error) {
		return udp(ctx, c, cfg, w)
	}}
}

// Scenarios are the names of all.
func Scenarios() (names []string) {
	for _, s := range scenarios() {
		names = append(names, s.name)
	}
	return names
}

// sample is one measurement of one variant.
type sample struct {
	Variant  string  `json:"variant"`
	Scenario string  `json:"scenario"`
	Round    int     `json:"round"`
	Figures  figures `json:"figures"`
	// Limit is why no higher rate was found, where one was looked for.
	Limit *trial.Limit `json:"limit,omitempty"`
	// Stolen is the part of all cores' time that the hypervisor gave to others,
	// Disturbed that of the gateway's core, Core, that was used while no gateway ran.
	Core      int     `json:"core"`
	Stolen    float64 `json:"stolen"`
	Disturbed float64 `json:"disturbed"`
	// Noisy samples are left out of medians, while enough others are left.
	Noisy bool `json:"noisy"`
	// Attempts is how often it was measured, as it was noisy before or the harness itself lost
	// packets: the last counts, and what must not happen in any.
	Attempts int `json:"attempts"`
}

// others is how far others had a part in a sample.
func (s sample) others() machine.Noise {
	return machine.Noise{Core: s.Core, Disturbed: s.Disturbed, Stolen: s.Stolen}
}

// noise says why a sample is noisy; empty: it is not.
func (s sample) noise() string { return strings.Join(s.others().Why(), "; ") }

// variantWidth is that of the longest name of a variant.
const variantWidth = len(variantWireGuard)

// header are the lines above a round's measurements.
func (s scenario) header(round, rounds int) []string {
	line := strings.Repeat(" ", variantWidth)
	for _, f := range s.figures {
		line += " " + f.heading()
	}
	return []string{"", fmt.Sprintf("%s, round %d of %d", s.name, round, rounds), line}
}

// heading is as wide as its column.
func (f figure) heading() string { return fmt.Sprintf("%*s", columnWidth, f.column) }

// columnWidth is the least of a column.
const columnWidth = 6

// row is a measurement as lines: its figures, and what is to be known of them.
func (s scenario) row(of sample) []string {
	line := fmt.Sprintf("%-*s", variantWidth, of.Variant)
	for _, f := range s.figures {
		text := "-"
		if v, ok := of.Figures[f.name]; ok {
			text = fmt.Sprintf("%.*f", f.digits, v)
		}
		line += fmt.Sprintf(" %*s", len(f.heading()), text)
	}
	lines := []string{line}
	if of.Limit != nil {
		if of.Figures[figureBound] != 0 {
			lines = append(lines, "  "+of.Limit.Bound())
		}
		lines = append(lines, "  limit: "+of.Limit.String())
	}
	if n := of.Figures[figureVain]; n != 0 {
		lines = append(lines, fmt.Sprintf("  iperf3 hung %.0f times before", n))
	}
	if of.Noisy {
		lines = append(lines, "  NOISY: "+of.noise()+trial.AllNoisy(of.Attempts))
	}
	return lines
}
