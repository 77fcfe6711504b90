package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/policy"
)

// follow applies what the source has, and acknowledges it once it is in force.
// One goroutine does all of it, so that reports and acknowledgements stay in order.
func (h *Host) follow(ctx context.Context) error {
	lost := false
	for {
		u, err := h.next(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			if !lost {
				lost = true
				h.cfg.Log.Warn("control plane lost; going on with what is known", "error", err)
			}
			if err := pause(ctx, retryInterval); err != nil {
				return err
			}
			continue
		}
		if lost {
			lost = false
			h.cfg.Log.Info("control plane is back", "revision", u.Revision)
		}
		if u.Revision != 0 {
			h.settle(u)
		}
	}
}

// next tells what is in force and waits for what is newer. It returns an empty
// update when there was nothing for a while, so that counters get reported and
// failed networks opened again.
func (h *Host) next(ctx context.Context) (spec.Update, error) {
	if err := h.cfg.Source.Report(ctx, h.report()); err != nil {
		return spec.Update{}, fmt.Errorf("report to the control plane: %w", err)
	}
	if h.at != (spec.Cursor{}) {
		if err := h.cfg.Source.Acknowledge(ctx, h.cfg.Daemon.Host, h.at); err != nil {
			return spec.Update{}, fmt.Errorf("acknowledge revision %d: %w", h.at.Revision, err)
		}
	}
	if h.unsettled() && time.Since(h.retried) > reopenInterval {
		h.retried, h.at = time.Now(), spec.Cursor{}
	}
	wait, cancel := context.WithTimeout(ctx, reportInterval)
	defer cancel()
	u, err := h.cfg.Source.Next(wait, h.at)
	if err != nil && wait.Err() != nil {
		return spec.Update{}, nil // ctx may have ended, too: the caller looks
	}
	return u, err
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

// settle applies an update and takes note of what failed.
func (h *Host) settle(u spec.Update) {
	before := h.failures.Load()
	err := h.apply(u)
	switch {
	case err == nil && u.Full:
		h.settled.Store(before)
		h.trouble = ""
	case err != nil:
		h.failures.Add(1)
		h.retried = time.Now()
		if text := err.Error(); text != h.trouble { // the same every two seconds helps nobody
			h.trouble = text
			h.cfg.Log.Error("desired state not in force in full; trying again", "revision", u.Revision, "error", err)
		}
	}
}

// apply brings the host to an update: networks first, then who is attached.
func (h *Host) apply(u spec.Update) error {
	opened, err := false, error(nil)
	if u.State != nil {
		h.state = *u.State
		h.locate()
		opened, err = h.reconcile()
	}
	byNetwork := map[string][]spec.Attachment{}
	for _, a := range u.Attached {
		byNetwork[a.Network] = append(byNetwork[a.Network], a)
	}
	for _, n := range h.list() {
		n.apply(u.Full, byNetwork[n.id], u.Detached)
	}
	h.at = u.Cursor()
	if opened && !u.Full {
		h.at = spec.Cursor{} // who is attached to what was opened stands in a full update only
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
// network that is to be another is closed and opened again. It reports whether it
// opened any; the error is about those that it could not open.
func (h *Host) reconcile() (opened bool, err error) {
	wanted := map[string]spec.Network{}
	var ids []string
	for _, n := range h.state.Networks {
		if n.Region == h.cfg.Daemon.Region && h.holds(n) != [2]bool{} {
			wanted[n.ID] = n
			ids = append(ids, n.ID)
		}
	}
	ports, err := assignPorts(ids, PortRange(h.cfg.Daemon.WireGuard.Ports), h.ports)
	if err != nil {
		return false, err
	}
	h.ports = ports
	for _, n := range h.list() {
		if w, ok := wanted[n.id]; ok && n.serves(w, h.holds(w)) {
			continue
		}
		n.close()
		h.forget(n)
		n.log.Info("network closed")
	}
	var failed []error
	for _, id := range ids {
		fresh, err := h.bringUp(wanted[id])
		if err != nil {
			failed = append(failed, err)
		}
		opened = opened || fresh
	}
	h.poke()
	return opened, errors.Join(failed...)
}

// serves reports whether an open network is what the desired state asks for;
// what may change while it is open is left out.
func (n *network) serves(w spec.Network, held [2]bool) bool {
	return w.CIDR == n.cidr && w.Pair == n.pair && w.TCPMapping == n.tcp && held == n.held
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
		open.setPolicy(snapshot)
		return false, nil
	}
	fresh, err := openNetwork(h, n, snapshot)
	if err != nil {
		return false, err
	}
	h.mu.Lock()
	h.networks[n.ID] = fresh
	h.mu.Unlock()
	fresh.log.Info("network up", "cidr", n.CIDR, "pair", n.Pair, "wireguard_port", fresh.tun.ListenPort(),
		"public_key", fresh.public.String(), "uplink", fresh.up.String())
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
		Network: n.CIDR, Gateway: n.Gateway(), Own: h.ownAddresses(region),
		Loopback: region.Loopback(), Mode: mode, Rules: rules,
	})
}

// ownAddresses are those that no sandbox of the region may reach: the hosts'
// endpoints and bypass addresses, and every dedicated IP.
func (h *Host) ownAddresses(r spec.Region) []netip.Addr {
	var own []netip.Addr
	for _, host := range r.Hosts {
		own = append(own, host.Endpoint)
		if host.Bypass.IsValid() {
			own = append(own, host.Bypass)
		}
	}
	for _, n := range h.state.Networks {
		if n.Region == r.Name {
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
