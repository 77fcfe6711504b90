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

func smallFigures() []figure {
	return []figure{
		{figureProcessPacket, "CPU of the process", "us/packet", byRatio, 2},
		{figureCorePacket, "CPU of the core", "us/packet", byRatio, 2},
		{figureLoss, "lost at that rate", "%", alone, 3},
		{figurePeak, "most at 0.1 % loss", "1000/s", byRatio, 0},
		{figurePeakPacket, "CPU of the core then", "us/packet", byRatio, 2},
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
	one := func(name, title string, tunnelled bool, f []figure, in bool,
		run func(context.Context, *chain, *Config, bool) (figures, error)) scenario {
		return scenario{name, title, tunnelled, f, func(ctx context.Context, c *chain, cfg *Config) (figures, error) {
			return run(ctx, c, cfg, in)
		}}
	}
	return []scenario{
		one("tcp-out", fmt.Sprintf("TCP, %d streams, egress", streams), false, bulkFigures(), false, bulk),
		one("tcp-in", fmt.Sprintf("TCP, %d streams, ingress", streams), false, bulkFigures(), true, bulk),
		one("udp-out", fmt.Sprintf("UDP, %d-byte packets of %d flows, egress", smallSize, flows), true, smallFigures(), false, small),
		one("udp-in", fmt.Sprintf("UDP, %d-byte packets of %d flows, ingress", smallSize, flows), true, smallFigures(), true, small),
		{"connections", fmt.Sprintf("short TCP connections to %d destinations", destinations), true, shortFigures(), spread1000},
		{"connections-one", "short TCP connections to one destination", true, shortFigures(), single},
	}
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
