package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

// follow applies what the source has, and acknowledges it once it is in force.
// One goroutine does all of it, so that reports and acknowledgements stay in order.
// When leaving ends, it reports at once.
func (h *Host) follow(ctx, leaving context.Context) error {
	for {
		u, err := h.next(ctx, leaving)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if u.Revision != 0 {
			h.settle(u.Revision, func() error { return h.apply(u) })
		}
		h.tendMembers(err != nil)
		h.lookAround()
		h.reopen()
		if err == nil {
			h.found(u)
			continue
		}
		h.lost(err)
		if err := pause(ctx, retryInterval); err != nil {
			return err
		}
	}
}

// lost and found tell the log, once each, that the control plane is away and back.
func (h *Host) lost(err error) {
	h.unreported = true // to whoever is there next
	if !h.away {
		h.away = true
		h.cfg.Log.Warn("control plane lost; going on with what is known", "error", err)
	}
}

func (h *Host) found(u spec.Update) {
	if h.away {
		h.away = false
		h.cfg.Log.Info("control plane is back", "revision", u.Revision)
	}
}

// next tells what is in force and waits for what is newer. It returns an empty
// update when there was nothing for a while, so that counters get reported and
// failed networks opened again. There may be an update beside an error: a control
// plane that refuses this host's reports says by it that the host is to serve nothing.
func (h *Host) next(ctx, leaving context.Context) (spec.Update, error) {
	draining := leaving.Err() != nil
	told := h.tell(ctx)
	wait, cancel := context.WithTimeout(ctx, reportInterval)
	defer cancel()
	if !draining {
		defer context.AfterFunc(leaving, cancel)()
	}
	u, err := h.cfg.Source.Next(wait, h.at)
	if err != nil && wait.Err() != nil {
		return spec.Update{}, told // ctx may have ended, too: the caller looks
	}
	return u, errors.Join(told, err)
}

// tell acknowledges what is in force, and reports what this host has: each second, and
// before it acknowledges what may have changed its networks. To report each time
// somebody was attached would cost more than to attach where there are many networks.
func (h *Host) tell(ctx context.Context) error {
	if draining := h.draining.Load(); h.unreported || draining != h.saidDraining || time.Since(h.reported) >= reportInterval {
		began := time.Now()
		if err := h.cfg.Source.Report(ctx, h.report()); err != nil {
			h.unreported = true
			return fmt.Errorf("report to the control plane: %w", err)
		}
		h.reported, h.unreported, h.saidDraining = began, false, draining
	}
	if h.at == (spec.Cursor{}) {
		return nil
	}
	if err := h.cfg.Source.Acknowledge(ctx, h.cfg.Daemon.Host, h.at); err != nil {
		return fmt.Errorf("acknowledge revision %d: %w", h.at.Revision, err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// settle brings the networks to what is wanted and takes note of what failed.
func (h *Host) settle(revision uint64, bring func() error) {
	err := bring()
	if err == nil {
		h.trouble = ""
		return
	}
	h.failures.Add(1)
	h.retried = time.Now()
	if text := err.Error(); text != h.trouble { // the same every two seconds helps nobody
		h.trouble = text
		h.cfg.Log.Error("desired state not in force in full; trying again", "revision", revision, "error", err)
	}
}

// reopen opens networks again that failed, from what is known: the control plane
// may be away.
func (h *Host) reopen() {
	if !h.unsettled() || time.Since(h.retried) < reopenInterval {
		return
	}
	h.retried = time.Now()
	h.settle(h.at.Revision, func() error {
		h.known.Lock()
		defer h.known.Unlock()
		return h.bring(true, false, nil, nil)
	})
}

// lookAround gives the networks new policies when this machine has got another address,
// or lost one.
func (h *Host) lookAround() {
	if time.Since(h.looked) < mendInterval {
		return
	}
	h.looked = time.Now()
	found, err := machineAddresses()
	if err == nil && slices.Equal(found, h.machine) {
		return
	}
	h.settle(h.at.Revision, func() error {
		h.known.Lock()
		defer h.known.Unlock()
		return errors.Join(err, h.bring(true, false, nil, nil))
	})
}

// tendMembers lets those go whose grace is over. While the control plane is away
// it does not run.
func (h *Host) tendMembers(away bool) {
	h.known.Lock()
	defer h.known.Unlock()
	if away {
		h.roster.hold(time.Now())
		return
	}
	gone := h.roster.expire(time.Now())
	if len(gone) == 0 {
		return
	}
	h.cfg.Log.Info("sandboxes that the control plane did not name again are detached", "count", len(gone))
	if err := h.bring(false, false, nil, gone); err != nil {
		h.cfg.Log.Error("networks not brought up to date", "error", err)
	}
	h.keeper.touch()
}

// apply brings the host to an update: networks first, then who is attached.
func (h *Host) apply(u spec.Update) error {
	h.known.Lock()
	defer h.known.Unlock()
	attached, detached := h.roster.update(u, time.Now())
	if u.State != nil {
		h.state = *u.State
		h.locate()
	}
	err := h.bring(u.State != nil, u.Full, attached, detached)
	if n := len(h.roster.orphans); u.Full && n > 0 {
		if h.cfg.Daemon.Roles.Control { // it is in this process, and begins anew with it
			h.cfg.Log.Info("sandboxes of before the start stay until their workers attach them again", "count", n, "for", adoptionGrace)
		} else {
			h.cfg.Log.Warn("the control plane is another than before; sandboxes that it does not know stay until they are attached again", "count", n, "for", adoptionGrace)
		}
	}
	h.at = u.Cursor()
	h.keeper.touch()
	return err
}

// bring puts in force what is known: where asked to, which networks there are;
// then who is attached, to all networks anew or only what changed. What was
// opened just now gets all of its members.
func (h *Host) bring(networks, anew bool, attached []spec.Attachment, detached []string) (err error) {
	fresh := map[string]bool{}
	h.unreported = h.unreported || networks || anew
	if networks {
		if h.machine, err = machineAddresses(); err != nil {
			return err
		}
		h.looked = time.Now()
		before := h.failures.Load()
		if fresh, err = h.reconcile(); err == nil {
			h.settled.Store(before)
		}
	}
	var all map[string][]spec.Attachment
	if anew || len(fresh) > 0 {
		all = h.roster.byNetwork()
	}
	changed := map[string][]spec.Attachment{}
	for _, a := range attached {
		changed[a.Network] = append(changed[a.Network], a)
	}
	for _, n := range h.list() {
		if anew || fresh[n.id] {
			n.apply(true, all[n.id], nil)
		} else {
			n.apply(false, changed[n.id], detached)
		}
	}
	return err
}

// locate notes where sidecars find the WireGuard devices.
func (h *Host) locate() {
	addr := h.cfg.Daemon.WireGuard.Address
	if !addr.IsValid() {
		region, _ := h.state.Region(h.cfg.Daemon.Region)
		for _, host := range region.Hosts {
			if host.Name == h.cfg.Daemon.Host {
				addr = host.Endpoint
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.address = addr
}

// reconcile opens networks that are new and closes those that are gone. A
// network that is to be another is closed and opened again. It names those that it
// opened; the error is about those that it could not open.
func (h *Host) reconcile() (fresh map[string]bool, err error) {
	fresh = map[string]bool{}
	wanted := map[string]spec.Network{}
	var ids []string
	for _, n := range h.state.Networks {
		if n.Region == h.cfg.Daemon.Region && h.holds(n) != [2]bool{} {
			wanted[n.ID] = n
			ids = append(ids, n.ID)
		}
	}
	h.forgetJunctions()
	if err := h.assign(wanted); err != nil {
		return fresh, err
	}
	for _, n := range h.list() {
		if w, ok := wanted[n.id]; ok && n.serves(w, h.holds(w)) {
			continue
		}
		h.keeper.note(n) // where its peers are, in case that it is opened again
		sessions := n.live()
		n.close()
		h.forget(n)
		if w, ok := wanted[n.id]; ok {
			n.log.Warn("network closed, to be opened again as it is wished for now: its connections have ended", "changed", n.changed(w, h.holds(w)), "sessions", sessions)
		} else {
			n.log.Info("network closed", "sessions", sessions)
		}
	}
	if err := h.hostSide.sweep(h.heldAddresses(wanted)); err != nil {
		return fresh, err
	}
	var failed []error
	for _, id := range ids {
		opened, err := h.bringUp(wanted[id])
		if err != nil {
			failed = append(failed, err)
		}
		if opened {
			fresh[id] = true
		}
	}
	h.poke()
	h.sweepWires()
	return fresh, errors.Join(failed...)
}

// sweepWires removes, the first time, what a former life of the gateway left behind for
// peerings by interface that are there no more. Those that are have been opened before,
// so that inner addresses lead nowhere else in between.
func (h *Host) sweepWires() {
	if h.swept {
		return
	}
	if err := h.cfg.Wires.Sweep(); err != nil {
		h.cfg.Log.Warn("routes that a former process left for peerings by interface may still be there; they drop packets", "error", err)
	}
	h.swept = true
}

// serves reports whether an open network is what the desired state asks for;
// what may change while it is open is left out.
func (n *network) serves(w spec.Network, held [2]bool) bool {
	return w.CIDR == n.cidr && w.Pair == n.pair && translationOf(w) == n.translation && held == n.held
}

// changed names what the desired state asks for and an open network does not serve.
func (n *network) changed(w spec.Network, held [2]bool) (keys []string) {
	is, was := translationOf(w), n.translation
	for _, k := range []struct {
		name string
		same bool
	}{
		{"cidr", w.CIDR == n.cidr}, {"pair", w.Pair == n.pair}, {"hosts", held == n.held},
		{"tcpMapping", is.mapping == was.mapping}, {"portBlock", is.block == was.block},
		{"timers", is.timers == was.timers}, {"limits", is.limits == was.limits},
	} {
		if !k.same {
			keys = append(keys, k.name)
		}
	}
	return keys
}

// live is how many sessions there are on the pair's addresses.
func (n *network) live() (sum uint64) {
	for side, ip := range n.pair {
		if n.held[side] {
			n.fwd.withTable(ip, func(t *nat.Table) {
				for _, of := range t.Stats().Sessions {
					sum += of
				}
			})
		}
	}
	return sum
}

// heldAddresses are the dedicated IPs of networks that this host holds, by network.
func (h *Host) heldAddresses(networks map[string]spec.Network) map[string][]netip.Addr {
	held := make(map[string][]netip.Addr, len(networks))
	for id, n := range networks {
		held[id] = heldOf(n, h.holds(n))
	}
	return held
}

// holds reports which addresses of a network's pair this host holds.
func (h *Host) holds(n spec.Network) (held [2]bool) {
	for i, host := range h.state.HostsOf(n) {
		held[i] = host == h.cfg.Daemon.Host
	}
	return held
}

// bringUp opens a network, or gives one that is open its new policy.
func (h *Host) bringUp(n spec.Network) (opened bool, err error) {
	snapshot, err := h.compile(n)
	if err != nil {
		return false, fmt.Errorf("network %s: policy: %w", n.ID, err)
	}
	h.mu.Lock()
	open := h.networks[n.ID]
	h.mu.Unlock()
	if open != nil {
		open.setDraining(n.Draining)
		open.setPolicy(snapshot)
		h.settleSite(open, n)
		return false, nil
	}
	fresh, err := openNetwork(h, n, snapshot)
	if err != nil {
		return false, err
	}
	fresh.setDraining(n.Draining)
	fresh.former = h.keeper.contacts(n.ID)
	h.mu.Lock()
	h.networks[n.ID] = fresh
	h.mu.Unlock()
	fresh.log.Info("network up", "cidr", n.CIDR, "pair", n.Pair, "wireguard_port", fresh.tun.ListenPort(),
		"public_key", fresh.public.String(), "uplink", fresh.up.String())
	h.settleSite(fresh, n)
	return true, nil
}

// compile makes the policy of a network with nobody attached.
func (h *Host) compile(n spec.Network) (*policy.Snapshot, error) {
	mode, rules, err := config.PolicyRules(n.Policy)
	if err != nil {
		return nil, err
	}
	region, _ := h.state.Region(n.Region)
	return policy.Compile(policy.Config{
		Network: n.CIDR, Gateway: n.Gateway(), Own: slices.Concat(h.ownAddresses(region, n.ID), h.machinesOwn(region, n), h.astray(region, n)), Pair: n.Pair[:],
		Peered:   h.peeredRanges(n.ID),
		Loopback: region.Loopback(), Mode: mode, Rules: rules,
	})
}

// machinesOwn are this machine's addresses but the network's pair: a sandbox would reach
// what listens there from inside. In a loopback region they are everybody's.
func (h *Host) machinesOwn(r spec.Region, n spec.Network) (own []netip.Addr) {
	if r.Loopback() {
		return nil
	}
	for _, a := range h.machine {
		if !slices.Contains(n.Pair[:], a) {
			own = append(own, a)
		}
	}
	return own
}

// machineAddresses are the IPv4 addresses of this machine, sorted, each once.
func machineAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("look for this machine's addresses, which no sandbox may reach: %w", err)
	}
	var found []netip.Addr
	for _, a := range list {
		if p, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok && ip.Unmap().Is4() {
				found = append(found, ip.Unmap())
			}
		}
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return slices.Compact(found), nil
}

// astray are the addresses of a network's pair that another host holds and that are on
// this machine all the same: what a sandbox sends there would come to this machine's own
// services, from inside. In a loopback region all addresses are on every machine.
func (h *Host) astray(r spec.Region, n spec.Network) (here []netip.Addr) {
	for side, held := range h.holds(n) {
		if !held && !r.Loopback() && isLocal(n.Pair[side]) {
			here = append(here, n.Pair[side])
		}
	}
	return here
}

// isLocal reports whether the kernel takes an address for this machine's.
func isLocal(a netip.Addr) bool {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// ownAddresses are those that no sandbox of a network may reach, wherever they are: the
// hosts' endpoints and bypass addresses, this one's as workers know it, and every
// dedicated IP of other networks than its own.
func (h *Host) ownAddresses(r spec.Region, network string) []netip.Addr {
	var own []netip.Addr
	if a := h.cfg.Daemon.WireGuard.Address; a.Is4() {
		own = append(own, a)
	}
	for _, host := range r.Hosts {
		if host.Endpoint.Is4() {
			own = append(own, host.Endpoint)
		}
		if host.Bypass.IsValid() {
			own = append(own, host.Bypass)
		}
	}
	for _, n := range h.state.Networks {
		if n.Region == r.Name && n.ID != network {
			own = append(own, n.Pair[:]...)
		}
	}
	return own
}

// socketShare is how many sockets one network may open: an equal share of what
// the process may, so that no network takes another's.
func (h *Host) socketShare() int {
	return max(uplink.DescriptorLimit()/max(len(h.ports), 1), 1)
}
