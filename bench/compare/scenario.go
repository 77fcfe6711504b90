package compare

import (
	"context"
	"fmt"
	"strings"

	"github.com/sallyport-net/sallyport/bench/report"
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
		{figureProcessGB, "CPU of the process", "s/GB", byRatio, 2},
		{figureCoreGB, "CPU of the core", "s/GB", byRatio, 2},
		{figureThroughput, "throughput", "Gbit/s", byRatio, 2},
		{figureResent, "segments sent again", "per GB", alone, 0},
	}
}

func datagramFigures() []figure {
	return []figure{
		{figureProcessPacket, "CPU of the process", "us/packet", byRatio, 2},
		{figureCorePacket, "CPU of the core", "us/packet", byRatio, 2},
		{figureLoss, "lost at that rate", "%", alone, 3},
		{figurePeak, "most at 0.1 % loss", "1000/s", byRatio, 0},
		{figurePeakPacket, "CPU of the core then", "us/packet", byRatio, 2},
		{figureWrong, "packets from or to a wrong address, or damaged", "", alone, 0},
	}
}

func latencyFigures() []figure {
	return []figure{
		{figureP50, "p50", "us", byMore, 0},
		{figureP99, "p99", "us", byMore, 0},
		{figureLoss, "not answered", "%", alone, 3},
		{figureEchoRate, "requests", "1000/s", alone, 1},
		{figureBusy, "the gateway's core in use", "%", alone, 0},
		{figureWrong, "packets from or to a wrong address, or damaged", "", alone, 0},
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
	run       func(ctx context.Context, c *chain, cfg *Config) (figures, error)
}

func scenarios() []scenario {
	return []scenario{
		bulkScenario("tcp-out", "egress", false), bulkScenario("tcp-in", "ingress", true),
		datagramScenario("udp-out", "egress", way{false, smallSize}), datagramScenario("udp-in", "ingress", way{true, smallSize}),
		datagramScenario("udp1420-out", "egress", way{false, largeSize}), datagramScenario("udp1420-in", "ingress", way{true, largeSize}),
		{"latency-idle", fmt.Sprintf("request and answer, %d bytes, idle", echoSize), true, latencyFigures(), latencyIdle},
		{"latency-half", fmt.Sprintf("request and answer, %d bytes, half of the comparator's load", echoSize), true, latencyFigures(), latencyHalf},
		{"connections", fmt.Sprintf("short TCP connections to %d destinations", destinations), true, shortFigures(), spread1000},
		{"connections-one", "short TCP connections to one destination", true, shortFigures(), single},
	}
}

func bulkScenario(name, direction string, in bool) scenario {
	return scenario{name, fmt.Sprintf("TCP, %d streams, %s", streams, direction), false, bulkFigures(), func(ctx context.Context, c *chain, cfg *Config) (figures, error) {
		return bulk(ctx, c, cfg, in)
	}}
}

func datagramScenario(name, direction string, w way) scenario {
	return scenario{name, fmt.Sprintf("UDP, %d-byte packets of %d flows, %s", w.size, flows, direction), true, datagramFigures(), func(ctx context.Context, c *chain, cfg *Config) (figures, error) {
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
	// Stolen is the part of all cores' time that the hypervisor gave to others,
	// Disturbed that of the gateway's core that was used while no gateway ran.
	Stolen    float64 `json:"stolen"`
	Disturbed float64 `json:"disturbed"`
	// Noisy samples are left out of medians, while enough others are left.
	Noisy bool `json:"noisy"`
}

// noise says why a sample is noisy, or would be.
func (s sample) noise() string {
	return fmt.Sprintf("%.1f %% of the time stolen, %.0f %% of the core in use before", 100*s.Stolen, 100*s.Disturbed)
}

func (s sample) String() string {
	var parts []string
	for _, sc := range scenarios() {
		if sc.name != s.Scenario {
			continue
		}
		for _, f := range sc.figures {
			if v, ok := s.Figures[f.name]; ok {
				parts = append(parts, fmt.Sprintf("%.*f %s", f.digits, v, f.unit))
			}
		}
	}
	if s.Figures[figureBound] != 0 {
		parts = append(parts, "the source could do no more")
	}
	if n := s.Figures[figureVain]; n != 0 {
		parts = append(parts, fmt.Sprintf("iperf3 hung %.0f times before", n))
	}
	if s.Noisy {
		parts = append(parts, "NOISY: "+s.noise())
	}
	return strings.Join(parts, "  ")
}
