package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// mendInterval is how often the gateway looks whether the host's network stack still
// has what it was given: who takes an interface down takes its routes away.
const mendInterval = 2 * time.Second

// announcements is how often an address is announced by ARP after it came, mendInterval
// apart (RFC 5227 section 2.3: ANNOUNCE_NUM, ANNOUNCE_INTERVAL).
const announcements = 2

// hostSide is what the gateway changes in the host's own network stack for its uplinks.
// All of it carries a tag: what a crash left behind is found at the next start, taken
// over or removed, and everything is taken back at the end.
//
// A hostSide whose host is nil does nothing: the sockets uplink on addresses that are
// on the host already.
type hostSide struct {
	daemon config.Daemon
	host   hostnet.Host
	hook   hook
	log    *slog.Logger

	closing sync.Once

	mu       sync.Mutex // held while the host is changed
	swept    bool
	link     string                // by which addresses are reached; "": not known
	standing hostnet.Plan          // in force, unless it is empty
	served   map[string]*hostShare // what networks were given, by ID
	adopted  hostnet.Plan          // of a former life, for networks that are not open yet
	trouble  string                // what the log was told last
}

// hostShare is one network's part of the host's stack.
type hostShare struct {
	plan      hostnet.Plan
	addresses []netip.Addr
	announce  int          // how often yet
	cut       *atomic.Bool // the way to the addresses is known to be cut
}

// newHostSide opens the host's network stack where the configuration has use for it.
func newHostSide(d config.Daemon, log *slog.Logger) (*hostSide, error) {
	s := &hostSide{daemon: d, hook: hook{d.Tun.Hook, d.Tun.HookTimeout}, log: log, served: map[string]*hostShare{}}
	if d.Uplink != config.UplinkTun && d.Sockets.AddAddressesTo == "" {
		return s, s.leftovers()
	}
	kernel, err := hostnet.Here()
	if err != nil {
		return nil, fmt.Errorf("open the host's network stack: %w", err)
	}
	if err := kernel.Claim(hostTag); err != nil {
		_ = kernel.Close()
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		return nil, fmt.Errorf("another sallyportd on this host changes its network stack, too, which is one's job: end it first, or have one of the two do without (`uplink: sockets`, no sockets.add_addresses_to): %w", err)
	}
	s.host = kernel
	return s, nil
}

// leftovers removes what a gateway left behind that had another uplink and was killed: its
// rules would lead packets astray. Blackholes stay, for addresses that are not on the
// host yet: what arrives for those would go round a loop. Nothing of a gateway that
// lives is touched.
func (s *hostSide) leftovers() error {
	kernel, err := hostnet.Here()
	if err != nil {
		return nil // who may not look has left nothing
	}
	defer kernel.Close()
	found, err := kernel.Tagged(hostTag)
	if err != nil {
		return nil
	}
	found.Routes = slices.DeleteFunc(found.Routes, func(r hostnet.Route) bool { return r.Kind == hostnet.Blackhole })
	if found.Empty() || kernel.Claim(hostTag) != nil {
		return nil
	}
	if err := kernel.Undo(found); err != nil {
		return fmt.Errorf("a gateway with another uplink was killed on this host, and left %v, which would lead packets astray: start it once more with its uplink and end it, or remove them by hand (`ip route flush table all proto 83`, `ip rule del priority %d`): %w", found, rulePriority, err)
	}
	s.log.Warn("removed from the host what a gateway with another uplink left behind", "what", found.String())
	return nil
}

// otherMode is what an error says that could not be mended here.
func (s *hostSide) otherMode() string {
	if s.daemon.Uplink == config.UplinkTun {
		return "`uplink: sockets` works without"
	}
	return "without sockets.add_addresses_to the addresses can be put on the host by whoever may (`ip address add ADDRESS/32 dev lo`)"
}

// sweep removes, the first time, what a former life of the gateway left behind and none
// of the networks wants, and keeps the rest for them. Then the standing part is put in
// force, where it is not. A living gateway beside this one is an error.
func (s *hostSide) sweep(wanted map[string][]netip.Addr) error {
	if s.host == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.swept {
		warning, err := s.nextHop()
		if err != nil {
			return fmt.Errorf("%w; %s", err, s.otherMode())
		}
		if warning != "" {
			s.log.Warn(warning)
		}
		if err := s.sweepOnce(wanted); err != nil {
			return err
		}
		s.swept = true
	}
	plan := standingPlan(s.daemon)
	err := s.host.Apply(plan)
	if err == nil {
		s.standing = plan
		return nil
	}
	// What networks that are open stand on stays, also in part: without it their packets
	// would take the host's own way out.
	if s.standing.Empty() {
		err = hostnet.Rollback(s.host, plan, err)
	}
	return fmt.Errorf("prepare the host for dedicated addresses: %w; %s", err, s.otherMode())
}

func (s *hostSide) sweepOnce(wanted map[string][]netip.Addr) error {
	found, err := s.host.Tagged(hostTag)
	if err != nil {
		return fmt.Errorf("look for what a former start left on the host: %w", err)
	}
	keep := standingPlan(s.daemon)
	for id, held := range wanted {
		keep = keep.Join(networkPlan(s.daemon, id, held))
	}
	for _, r := range found.Routes {
		// A TUN goes with the process that has made it.
		if strings.HasPrefix(r.Link, linkPrefix) {
			return fmt.Errorf("the interface %s of another gateway is on this host: end that sallyportd first", r.Link)
		}
	}
	stale := found.Without(keep)
	s.adopted = found.Without(stale)
	if stale.Empty() {
		return nil
	}
	s.log.Warn("removing from the host what a former start left behind and no network wants", "what", stale.String())
	if err := s.host.Undo(stale); err != nil {
		return fmt.Errorf("remove from the host what a former start left behind: %w", err)
	}
	var gone []netip.Addr
	for _, r := range stale.Routes {
		if r.Kind == hostnet.Blackhole {
			gone = append(gone, r.Prefix.Addr())
		}
	}
	if err := s.hook.each(hookDelete, "", gone); err != nil {
		s.log.Error("addresses that a former start announced may still be announced", "error", err)
	}
	return nil
}

// lead leads packets to a network's addresses to it, and looks after that until leave;
// cut says when it cannot. After an error nothing of it is left.
func (s *hostSide) lead(id string, held []netip.Addr, cut *atomic.Bool) error {
	if s.host == nil {
		return nil
	}
	share := &hostShare{plan: networkPlan(s.daemon, id, held), addresses: held, announce: announcements, cut: cut}
	s.mu.Lock()
	err := s.host.Apply(share.plan)
	if err == nil {
		s.adopted = s.adopted.Without(share.plan)
	} else {
		err = fmt.Errorf("lead the dedicated addresses to the network: %w; %s", hostnet.Rollback(s.host, share.plan, err), s.otherMode())
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	// A hook takes its time, which nobody else has to wait for.
	if err = s.ways(id, held); err == nil {
		if err = s.hook.each(hookAdd, id, held); err == nil {
			err = s.announce(share)
		}
		if err != nil {
			err = errors.Join(err, s.hook.each(hookDelete, id, held))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return hostnet.Rollback(s.host, share.plan, err)
	}
	s.served[id] = share
	return nil
}

// announce announces a network's addresses, if that is due.
func (s *hostSide) announce(share *hostShare) error {
	link := s.announcesOn()
	if share.announce == 0 || link == "" {
		return nil
	}
	share.announce--
	var errs []error
	for _, a := range share.addresses {
		errs = append(errs, s.host.Announce(link, a))
	}
	return errors.Join(errs...)
}

// leave ends the mending of a network, tells the hook, and returns what takes the rest
// back. That comes last, when nothing of the network can be sent any more.
func (s *hostSide) leave(id string) (restore func()) {
	s.mu.Lock()
	share := s.served[id]
	delete(s.served, id)
	s.mu.Unlock()
	if share == nil {
		return func() {}
	}
	if err := s.hook.each(hookDelete, id, share.addresses); err != nil {
		s.log.Error("addresses may still be announced", "network", id, "error", err)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.host.Undo(share.plan); err != nil {
			s.log.Error("the host keeps something of a network that is closed; the next start removes it", "network", id, "error", err)
		}
	}
}

// tend looks after the host's network stack until ctx ends.
func (s *hostSide) tend(ctx context.Context) error {
	if s.host == nil {
		return nil
	}
	for {
		if err := pause(ctx, mendInterval); err != nil {
			return err
		}
		s.mend()
	}
}

// mend puts back what is missing, and notes whose way is cut where it cannot.
func (s *hostSide) mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.host.Tagged(hostTag)
	if err != nil {
		s.tell("", err)
		return
	}
	var missing []string
	var failed []error
	repair := func(p hostnet.Plan) bool {
		gone := p.Without(have)
		gone.Links, gone.Sysctls = nil, nil
		if gone.Empty() {
			return true
		}
		err := s.host.Apply(p)
		failed = append(failed, err)
		// What is there without our mark is another's, and as good: it was not missing.
		if now, other := s.host.Tagged(hostTag); other == nil {
			gone = gone.Without(gone.Without(now))
		}
		if !gone.Empty() {
			missing = append(missing, gone.String())
		}
		return err == nil
	}
	err = s.passes()
	failed = append(failed, err)
	good := repair(s.standing) && err == nil
	for _, id := range s.ids() {
		share := s.served[id]
		whole := repair(share.plan) && good
		if whole {
			err := s.ways(id, share.addresses[:min(1, len(share.addresses))])
			failed = append(failed, err)
			whole = err == nil
		}
		if was := share.cut.Swap(!whole); was && whole {
			share.announce = announcements
		}
		if whole {
			failed = append(failed, s.announce(share))
		}
	}
	s.tell(strings.Join(missing, ", "), errors.Join(failed...))
}

// ids are those of the networks that were given something.
func (s *hostSide) ids() []string {
	ids := make([]string, 0, len(s.served))
	for id := range s.served {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// tell tells the log what was missing, and of the same error once.
func (s *hostSide) tell(missing string, err error) {
	switch {
	case err != nil && err.Error() != s.trouble:
		s.trouble = err.Error()
		s.log.Error("the host's network stack lost what the gateway gave it; trying again until it is back; sidecars are told to go elsewhere", "missing", missing, "error", err)
	case err == nil && (missing != "" || s.trouble != ""):
		s.trouble = ""
		s.log.Warn("the host's network stack is mended", "was_missing", missing)
	}
}

// close takes back what is left when all networks are closed.
func (s *hostSide) close() {
	if s.host == nil {
		return
	}
	s.closing.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := errors.Join(s.host.Undo(s.standing), s.host.Undo(s.adopted)); err != nil {
			s.log.Error("the host keeps something of the gateway; the next start removes it", "error", err)
		}
		if kernel, ok := s.host.(*hostnet.Kernel); ok {
			_ = kernel.Close()
		}
	})
}
