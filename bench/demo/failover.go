package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/spec"
)

// switchPatience is how soon the first answer must come by another path.
const switchPatience = time.Second

// failover is what its checks hand on to each other.
type failover struct {
	// who is the function under load: its active host is gw-a.
	who *resident
	// held is the connection that the next switch breaks, and stays the one that the
	// failback must not.
	held, stays int
	opened      int           // connections so far
	broken      error         // why there is nothing to look at any more
	killed      time.Duration // by monotonic
}

// failoverExpectations are about hosts and regions that die and come back.
func failoverExpectations(p *plan) []check {
	soon := fmt.Sprintf("within %v", switchPatience)
	back := fmt.Sprintf("hold %.0f s, usually %.0f s", holdHere.Seconds(), holdUsually.Seconds())
	return []check{
		{"the passive region is warm", hostC + " answers through a tunnel", lookWarm},
		{"SIGKILL of the active host under load", fmt.Sprintf("%v %s", p.acme[1], soon), lookHostKilled},
		{"the program's open connection", "reset " + soon, lookReset},
		{"the host is back", fmt.Sprintf("%v again, %s", p.acme[0], back), lookHostBack},
		{"SIGKILL of the whole region under load", fmt.Sprintf("%s %s", p.standby.either(), soon), lookRegionKilled},
		{"the program's open connection, again", "reset " + soon, lookReset},
		{"the region is back", "either of the pair again, " + back, lookRegionBack},
		{"all answers meanwhile", "none from elsewhere", lookAnswers},
	}
}

// sidecarNetworks is what is of interest in the sidecar's status.
type sidecarNetworks struct {
	Networks []struct {
		ID    string `json:"id"`
		Paths []struct {
			Gateway   spec.Gateway `json:"gateway"`
			Alive     bool         `json:"alive"`
			RTTMicros int64        `json:"rttMicros"`
		} `json:"paths"`
		Switches []sidecarSwitch `json:"switches"`
	} `json:"networks"`
}

// sidecarSwitch is one of the sidecar's decisions.
type sidecarSwitch struct {
	At   time.Time `json:"at"`
	From struct {
		Host string `json:"host"`
	} `json:"from"`
	Reason string  `json:"reason"`
	Millis float64 `json:"detectionMillis"`
}

// sidecarSandboxes is what is of interest in its list of sandboxes.
type sidecarSandboxes struct {
	Sandboxes []struct {
		ID      string `json:"id"`
		Passive struct {
			State  string `json:"state"`
			Reason string `json:"reason"`
		} `json:"passive"`
	} `json:"sandboxes"`
}

// ask gets a document of the sidecar's own API.
func (s *stage) ask(ctx context.Context, path string, into any) error {
	b, err := daemon.Get(ctx, s.local(), "http://sidecar"+path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return daemon.Final(fmt.Errorf("decode the sidecar's answer to %s: %w", path, err))
	}
	return nil
}

// lookWarm chooses the function that the next checks are about and waits until it
// is attached in the passive region, too, and the sidecar says that the tunnel there lives.
func lookWarm(ctx context.Context, s *stage) (o outcome, err error) {
	f := &s.failover
	if f.who, err = s.activeOn(ctx, atA); err != nil {
		return outcome{}, err
	}
	err = until(ctx, "the function is attached in "+regionPassive, func(ctx context.Context) error {
		var list sidecarSandboxes
		if err := s.ask(ctx, "/v1/sandboxes", &list); err != nil {
			return err
		}
		for _, b := range list.Sandboxes {
			switch {
			case b.ID != f.who.attachment.ID:
			case b.Passive.State == "ready":
				return nil
			default:
				return fmt.Errorf("%s: %s", b.Passive.State, b.Passive.Reason)
			}
		}
		return daemon.Final(errors.New("the sidecar does not know it"))
	})
	if err != nil {
		return outcome{}, err
	}
	err = until(ctx, "the sidecar says that "+hostC+" answers", func(ctx context.Context) error {
		var status sidecarNetworks
		if err := s.ask(ctx, "/v1/status", &status); err != nil {
			return err
		}
		for _, n := range status.Networks {
			for _, p := range n.Paths {
				if p.Gateway.Host == hostC && p.Gateway.Role == spec.RolePassive && p.Alive {
					o = outcome{fmt.Sprintf("%s alive, answers in %s", hostC, milliseconds(time.Duration(p.RTTMicros)*time.Microsecond)), true}
					return nil
				}
			}
		}
		return errors.New("no such path is alive")
	})
	return o, err
}

// give notes that it is of no use to look further, and why.
func (f *failover) give(err error) error {
	f.broken = err
	return err
}

// usable says whether what a check needs came about.
func (f *failover) usable() error {
	if f.broken != nil {
		return errors.New("nothing to look at, as what came before failed")
	}
	return nil
}

// open opens a connection that stays, and says where from.
func (f *failover) open(p *plan) (int, netip.AddrPort, error) {
	seen, err := addresses(f.who.do(task{Do: doHold, Target: p.hold.String()}))
	if err != nil {
		return 0, netip.AddrPort{}, fmt.Errorf("open a connection that stays: %w", err)
	}
	f.opened++
	return f.opened - 1, seen[0], nil
}

// first waits for the first answer of the load from one of some sources since a
// time, and says how long that took.
func (f *failover) first(since time.Duration, sources ...netip.Addr) (netip.Addr, time.Duration, error) {
	a, err := f.who.do(task{Do: doFirst, Sources: sources, Since: since})
	seen, err := addresses(a, err)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	return seen[0].Addr(), a.At - since, nil
}

// lookHostKilled puts a function under load and kills its active host.
func lookHostKilled(ctx context.Context, s *stage) (outcome, error) {
	f := &s.failover
	if f.who == nil {
		return outcome{}, f.give(errors.New("no function is attached in both regions"))
	}
	if err := s.remembered(ctx); err != nil {
		return outcome{}, f.give(err)
	}
	if _, err := addresses(f.who.do(task{Do: doLoad, Target: s.plan.web.String()})); err != nil {
		return outcome{}, f.give(err)
	}
	if _, _, err := f.first(monotonic(), s.plan.acme[0]); err != nil {
		return outcome{}, f.give(err)
	}
	var from netip.AddrPort
	var err error
	if f.held, from, err = f.open(s.plan); err != nil {
		return outcome{}, f.give(err)
	}
	if from.Addr() != s.plan.acme[0] {
		return outcome{}, f.give(fmt.Errorf("%v before, not %v", from.Addr(), s.plan.acme[0]))
	}
	return s.killAndWait(ctx, []netip.Addr{s.plan.acme[1]}, s.gateways[atA])
}

// remembered waits until gw-a's state file says where the worker is. After a restart
// without that, gw-a would have to wait for the worker to call, which WireGuard does
// every 5 s.
func (s *stage) remembered(ctx context.Context) error {
	return until(ctx, hostA+"'s state file names the worker", func(context.Context) error {
		b, err := os.ReadFile(filepath.Join(s.dir, hostA+"-state.json"))
		if err == nil && !bytes.Contains(b, []byte(s.plan.worker.String()+":")) {
			err = errors.New("it does not")
		}
		return err
	})
}

// killAndWait kills daemons and waits for the first answer from one of some sources.
func (s *stage) killAndWait(ctx context.Context, sources []netip.Addr, all ...*daemon.Daemon) (outcome, error) {
	f := &s.failover
	for i, g := range s.gateways {
		if !slices.Contains(all, g) {
			continue
		}
		n, err := s.wrongSources(ctx, i)
		if err != nil {
			return outcome{}, err
		}
		s.wrong += n
	}
	var err error
	if f.killed, err = kill(ctx, all...); err != nil {
		return outcome{}, err
	}
	source, took, err := f.first(f.killed, sources...)
	if err != nil {
		return outcome{}, f.give(err)
	}
	return outcome{fmt.Sprintf("%v after %s", source, milliseconds(took)), took <= switchPatience}, nil
}

// lookReset looks at the connection that was open when the path died.
func lookReset(_ context.Context, s *stage) (outcome, error) {
	f := &s.failover
	if err := f.usable(); err != nil {
		return outcome{}, err
	}
	a, err := f.who.do(task{Do: doLost, Count: f.held})
	if err != nil {
		return outcome{}, err
	}
	if a.At == 0 {
		return outcome{a.Failure, false}, nil
	}
	took := a.At - f.killed
	return outcome{fmt.Sprintf("%s after %s", lastWords(a.Failure), milliseconds(took)),
		took <= switchPatience && strings.Contains(a.Failure, "reset")}, nil
}

// lookHostBack starts the host again.
func lookHostBack(ctx context.Context, s *stage) (outcome, error) {
	return s.backAndWait(ctx, s.plan.acme[:1], s.gateways[atA])
}

// backAndWait starts daemons again, and waits for the first answer from one of
// some sources. A connection of the time between must not notice.
func (s *stage) backAndWait(ctx context.Context, sources []netip.Addr, all ...*daemon.Daemon) (outcome, error) {
	f := &s.failover
	if err := f.usable(); err != nil {
		return outcome{}, errors.Join(err, startAll(ctx, all...))
	}
	var from netip.AddrPort
	var err error
	if f.stays, from, err = f.open(s.plan); err != nil {
		return outcome{}, err
	}
	began, beganAt := monotonic(), time.Now()
	if err := startAll(ctx, all...); err != nil {
		return outcome{}, err
	}
	source, took, err := f.first(began, sources...)
	if err != nil {
		return outcome{}, f.give(err)
	}
	o := outcome{fmt.Sprintf("%v %s after its start", source, seconds(took)), took >= holdHere}
	_, lost := addresses(f.who.do(task{Do: doTalk, Count: f.stays}))
	if o.held && lost == nil {
		o.seen += fmt.Sprintf("; a connection from %v stayed", from.Addr())
		return o, nil
	}
	// A machine that is busy with other things may keep a gateway from answering for
	// so long that it passes for dead. Then this cannot be seen here.
	host := s.plan.gateways[s.plan.gatewayOf(from.Addr())].Name
	stall, err := s.stalled(ctx, host, beganAt)
	switch {
	case err != nil:
		return outcome{}, err
	case stall > 0:
		return outcome{}, &impossibleError{fmt.Errorf("%s; %s was left, as it did not answer for %s on this machine", o.seen, host, milliseconds(stall))}
	case lost != nil:
		o = outcome{o.seen + fmt.Sprintf(", but a connection from %v ended: %v", from.Addr(), lost), false}
	}
	return o, nil
}

// stalled says for how long a living host did not answer when the sidecar last
// left it for dead since a time; 0: it did not.
func (s *stage) stalled(ctx context.Context, host string, since time.Time) (silence time.Duration, err error) {
	var status sidecarNetworks
	if err := s.ask(ctx, "/v1/status", &status); err != nil {
		return 0, err
	}
	for _, n := range status.Networks {
		for _, x := range n.Switches {
			if n.ID == networkAcme && x.From.Host == host && x.Reason == "dead" && x.At.After(since) {
				silence = time.Duration(x.Millis * float64(time.Millisecond))
			}
		}
	}
	return silence, nil
}

// lookRegionKilled kills all that iad1 has.
func lookRegionKilled(ctx context.Context, s *stage) (outcome, error) {
	f := &s.failover
	if err := f.usable(); err != nil {
		_, killed := kill(ctx, s.control, s.gateways[atA], s.gateways[atB])
		return outcome{}, errors.Join(err, killed)
	}
	var err error
	if f.held, _, err = f.open(s.plan); err != nil {
		return outcome{}, err
	}
	return s.killAndWait(ctx, s.plan.standby[:], s.control, s.gateways[atA], s.gateways[atB])
}

// lookRegionBack starts it again.
func lookRegionBack(ctx context.Context, s *stage) (outcome, error) {
	return s.backAndWait(ctx, s.plan.acme[:], s.control, s.gateways[atA], s.gateways[atB])
}

// lookAnswers ends the load.
func lookAnswers(_ context.Context, s *stage) (outcome, error) {
	f := &s.failover
	if f.who == nil {
		return outcome{}, f.usable()
	}
	a, err := f.who.do(task{Do: doCease})
	seen, err := addresses(a, err)
	if err != nil {
		return outcome{}, err
	}
	all := distinct(seen)
	others := slices.ContainsFunc(all, func(x netip.Addr) bool { return !s.plan.acme.has(x) && !s.plan.standby.has(x) })
	return outcome{fmt.Sprintf("%d addresses of %d requests, %d failed: %s", len(all), a.Requests, a.Failed, words(all)), len(all) > 0 && !others}, nil
}
