package failover

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/bench/machine"
)

const (
	// loaders and their streams in each direction are what the full load is made of.
	loaders       = 2
	loaderStreams = 2
	// loadedPace is how often a new connection is tried meanwhile.
	loadedPace = 50 * time.Millisecond
)

// loadPhase is what the full load showed.
type loadPhase struct {
	Seconds float64 `json:"seconds"`
	Streams int     `json:"streams"` // TCP connections, half of them each way
	// Sent and Received are bytes, seen from the sandboxes.
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	// Busy and Stolen are parts of the time of all cores.
	Busy   float64 `json:"busy"`
	Stolen float64 `json:"stolen"`
	// Switches are false: nothing failed.
	Switches    uint64 `json:"switches"`
	Connections tally  `json:"connections"`
	// Probes that the sidecar sent in that time, and those that it missed.
	Probes uint64   `json:"probes"`
	Missed uint64   `json:"missed"`
	Wrong  []string `json:"wrong,omitempty"`
}

// megabits is the rate of a number of bytes.
func (l loadPhase) megabits(bytes uint64) float64 { return float64(bytes) * 8 / 1e6 / l.Seconds }

// underLoad has functions move as much as they can and counts the switches.
func (s *stage) underLoad(ctx context.Context) (l loadPhase, err error) {
	l.Streams = 2 * loaders * loaderStreams
	if err := s.settle(ctx); err != nil {
		return l, fmt.Errorf("before the load: %w", err)
	}
	var functions []*sandbox
	for i := range loaders {
		b, err := s.startFunction(fmt.Sprintf("load %d", i+1))
		if err != nil {
			return l, err
		}
		if _, err := b.do(ctx, order{Do: doPace, Every: time.Second}); err != nil {
			return l, err
		}
		functions = append(functions, b)
	}
	if _, err := s.meter.do(ctx, order{Do: doPace, Every: loadedPace}); err != nil {
		return l, err
	}
	before, err := s.reading(ctx)
	if err != nil {
		return l, err
	}
	replies := make([]reply, loaders)
	group, inTime := errgroup.WithContext(ctx)
	for i, b := range functions {
		group.Go(func() (err error) {
			replies[i], err = b.do(inTime, order{Do: doLoad, Streams: loaderStreams, Limit: s.cfg.Load})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return l, fmt.Errorf("under load: %w", err)
	}
	after, err := s.reading(ctx)
	if err != nil {
		return l, err
	}
	l.Seconds = after.at.since(before.at).Seconds()
	l.Busy, l.Stolen = after.cpu.Shares(before.cpu)
	l.Switches, l.Probes, l.Missed = after.switches-before.switches, after.probes-before.probes, after.missed-before.missed
	for _, r := range replies {
		l.Sent, l.Received = l.Sent+r.Sent, l.Received+r.Received
		l.Wrong = append(l.Wrong, s.strangers(r.Seen)...)
	}
	// The reply to any order counts the connections since the one before.
	r, err := s.meter.do(ctx, order{Do: doPace, Every: idlePace})
	l.Connections = r.Connections
	l.Wrong = append(l.Wrong, s.strangers(r.Seen)...)
	return l, err
}

// reading is what is counted up, at a time.
type reading struct {
	at                       instant
	cpu                      machine.CPU
	switches, probes, missed uint64
}

// reading reads it.
func (s *stage) reading(ctx context.Context) (r reading, err error) {
	st, err := s.sidecar.status(ctx)
	if err != nil {
		return r, err
	}
	r.at = now()
	r.switches, r.probes, r.missed = st.counts()
	r.cpu, err = machine.ReadCPU(machine.AllCores)
	return r, err
}
