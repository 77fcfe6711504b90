package failover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
)

// fault is what is done to whom.
type fault struct {
	how    method
	region bool // the whole region, not the active host alone
}

// method is how something is made to fail.
type method string

// The methods.
const (
	byKill      method = "SIGKILL"
	byStop      method = "SIGSTOP"
	byBlackhole method = "blackhole"
)

// Methods are the names of all.
func Methods() []string { return []string{string(byKill), string(byStop), string(byBlackhole)} }

// faults are all of them, in the order of the report.
func faults() (all []fault) {
	for _, region := range []bool{false, true} {
		for _, how := range []method{byKill, byStop, byBlackhole} {
			all = append(all, fault{how, region})
		}
	}
	return all
}

func (f fault) String() string {
	if f.region {
		return string(f.how) + " of the region"
	}
	return string(f.how) + " of the active host"
}

const (
	// bound is how long a run waits for what must follow a fault.
	bound = 5 * time.Second
	// settlePatience is how long everything may take to be as before the fault.
	settlePatience = 30 * time.Second
	// measuredPace is how often connections are opened while it is measured.
	measuredPace = 5 * time.Millisecond
	// longestDwell is until when, at random, the cut comes after everything is set
	// up, so that it meets every phase of the probes.
	longestDwell = 500 * time.Millisecond
)

// run is one fault and what followed.
type run struct {
	Fault string `json:"fault"`
	measurement
	// Cutting is how long it took to make the fault; times count from its begin.
	Cutting time.Duration `json:"cutting"`
	// Back is the time from the end of the fault (killed programs were started
	// again and are ready) to the first new connection by the active host.
	Back time.Duration `json:"back"`
	// Wrong says what should not have been; empty: nothing.
	Wrong []string `json:"wrong,omitempty"`
}

// once makes one fault, measures, and brings everything back.
func (s *stage) once(ctx context.Context, f fault) (r run, err error) {
	r.Fault = f.String()
	if err := s.settle(ctx); err != nil {
		return r, fmt.Errorf("before %v: %w", f, err)
	}
	if err := s.prepare(ctx); err != nil {
		return r, fmt.Errorf("before %v: %w", f, err)
	}
	began := now()
	err = s.cut(f)
	r.Cutting = now().since(began)
	if err == nil {
		var got reply
		got, err = s.meter.do(ctx, order{Do: doMeasure, Cut: began, Old: s.egress, Limit: bound})
		r.measurement = got.Measured
		r.Wrong = append(s.missing(f, r.measurement), s.strangers(got.Seen)...)
	}
	if err := errors.Join(err, s.restore(ctx, f)); err != nil {
		return r, fmt.Errorf("%v: %w", f, err)
	}
	restored := now()
	if _, err := s.meter.do(ctx, order{Do: doPace, Every: idlePace}); err != nil {
		return r, err
	}
	got, err := s.meter.do(ctx, order{Do: doAwait, Source: s.egress, Limit: settlePatience})
	if err != nil {
		return r, fmt.Errorf("after %v: %w", f, err)
	}
	r.Back = now().since(restored)
	r.Wrong = append(r.Wrong, s.strangers(got.Seen)...)
	return r, nil
}

// prepare opens the flows that the fault will meet, at the pace of measuring, and
// waits for a random while.
func (s *stage) prepare(ctx context.Context) error {
	if _, err := s.meter.do(ctx, order{Do: doHold}); err != nil {
		return err
	}
	if _, err := s.meter.do(ctx, order{Do: doPace, Every: measuredPace}); err != nil {
		return err
	}
	dwell := time.NewTimer(rand.N(longestDwell))
	defer dwell.Stop()
	select {
	case <-dwell.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// settle waits until the sidecar uses the active host and could use all others,
// and a new connection has gone that way.
func (s *stage) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settlePatience, fmt.Errorf("not everything was well within %v", settlePatience))
	defer cancel()
	if err := daemon.Until(ctx, "the active host is in use and all others could be", func(ctx context.Context) error {
		st, err := s.sidecar.status(ctx)
		if err != nil {
			return err
		}
		return st.settled(len(s.world.hosts))
	}); err != nil {
		return err
	}
	_, err := s.meter.do(ctx, order{Do: doAwait, Source: s.egress, Limit: settlePatience})
	return err
}

// victims are the daemons that a fault strikes, and the hosts whose links.
func (s *stage) victims(f fault) (daemons []*daemon.Daemon, hosts []*gatewayHost) {
	hosts = []*gatewayHost{s.active}
	if f.region {
		hosts = s.world.inRegion(activeRegion)
	}
	if f.how != byBlackhole {
		for _, h := range hosts {
			daemons = append(daemons, s.gateways[h.name])
		}
		hosts = nil
	}
	if f.region {
		// The control plane has no link that could be cut: its API crosses by the file
		// system. Stopped, it is as silent as behind a cut one.
		daemons = append(daemons, s.control[activeRegion])
	}
	return daemons, hosts
}

// cut makes the fault.
func (s *stage) cut(f fault) error {
	daemons, hosts := s.victims(f)
	sig := syscall.SIGSTOP
	if f.how == byKill {
		sig = syscall.SIGKILL
	}
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.hole.Set(true))
	}
	for _, d := range daemons {
		errs = append(errs, d.Signal(sig))
	}
	return errors.Join(errs...)
}

// restore takes the fault away and starts again what was killed, the control
// plane first.
func (s *stage) restore(ctx context.Context, f fault) error {
	daemons, hosts := s.victims(f)
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.hole.Set(false))
	}
	for _, d := range slices.Backward(daemons) {
		if f.how != byKill {
			errs = append(errs, d.Signal(syscall.SIGCONT))
			continue
		}
		err := d.Gone(ctx)
		if err == nil {
			err = d.Start()
		}
		if err == nil {
			err = d.Await(ctx)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// missing says what of all that must follow a fault did not.
func (s *stage) missing(f fault, m measurement) (wrong []string) {
	lost := func(what string, got bool) {
		if !got {
			wrong = append(wrong, fmt.Sprintf("%s within %v of the cut", what, bound))
		}
	}
	lost("no new connection was answered", m.First > 0)
	lost("the UDP flow was not answered", m.UDP > 0)
	switch {
	case m.Reset == 0 && m.How != "":
		wrong = append(wrong, "the idle connection "+m.How)
	case m.Reset > 0 && m.How != "reset":
		wrong = append(wrong, "the idle connection was not reset but ended: "+m.How)
	default:
		lost("the idle connection was not reset", m.Reset > 0)
	}
	for _, a := range []netip.Addr{m.Source, m.UDPSource} {
		if h := s.world.holder(a); a.IsValid() && (h == nil || f.region && h.region == activeRegion) {
			wrong = append(wrong, fmt.Sprintf("%v answered, which cannot", a))
		}
	}
	return wrong
}

// strangers says which addresses something was answered from that are in no pair
// of the networks.
func (s *stage) strangers(seen map[netip.Addr]int) (wrong []string) {
	for a, n := range seen {
		if s.world.holder(a) == nil {
			wrong = append(wrong, fmt.Sprintf("%d answers came to %v, which is in no pair", n, a))
		}
	}
	return wrong
}
