package gateway

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/tunnel"
)

// siteRole is what a host is to a network's site tunnel.
type siteRole uint8

const (
	// noSite: the network has none.
	noSite siteRole = iota
	// holdsSite: the tunnel is on this host. Its peers are the other sides and the
	// network's other host.
	holdsSite
	// relaysToSite: the tunnel is on the network's other host, to which this one has a
	// tunnel of its own.
	relaysToSite
)

// sitePlan is what the desired state asks of a network's peerings on this host.
type sitePlan struct {
	role siteRole
	key  tunnel.Key // private
	port uint16     // on which the tunnel listens here
	// peers are the tunnel's, by their names in the log.
	peers map[string]tunnel.Peer
	// ranges are those of the peering connections by which sandboxes begin, accepts those
	// of networks that may begin towards sandboxes, both by the connections' IDs.
	ranges, accepts map[string][]netip.Prefix
	// links are the connections that do not pass by the tunnel, where the site is here.
	links map[string]linkPlan
	// relayed says that the network has another host, which relays to the site here.
	relayed bool
	// table is the table of peered flows but for its seed, where the site is here.
	table nat.Config
}

// site is a network's site tunnel or relay tunnel while it is open.
type site struct {
	sitePlan
	device *siteDevice
	tun    *tunnel.Tunnel
	table  *peeredTable // nil where it relays
	links  map[string]*link
	// troubles are what the log was told of links that could not be opened; tried is
	// when that was tried last.
	troubles map[string]string
	tried    time.Time
	// reached says that a relay has shaken hands with the host that has the site.
	reached bool
	left    contacts // where peers were that were taken out
}

// maxLeft bounds how many peers that were taken out a site tunnel remembers.
const maxLeft = 64

// peeringState is what is counted of a peering connection as long as it is active.
type peeringState struct {
	counters peeringCounters
	// foreign are the packets that tunnels counted which have ended meanwhile.
	foreign uint64
}

// setSite brings the network's site or relay tunnel to a plan: opens, moves or closes
// it, changes its peers, and ends the flows to ranges that are peered no more. The
// policy in force refuses those already. The network itself goes on, whatever fails.
func (n *network) setSite(plan sitePlan) error {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	if n.closing.Load() {
		return nil
	}
	if n.peerings == nil {
		n.peerings = map[string]*peeringState{}
	}
	n.countPeerings(plan)
	var table *peeredTable // goes on when only the tunnel is another
	var before map[string][]netip.Prefix
	if s := n.site; s != nil {
		table, before = s.table, s.ranges
		if s.role != plan.role || s.port != plan.port || s.key != plan.key {
			n.rememberPeers()
			n.closeSite()
		}
	}
	if n.site == nil && plan.role != noSite {
		if err := n.openSite(plan, table); err != nil {
			return err
		}
	}
	if n.site == nil {
		return nil
	}
	return n.changeSite(plan, before)
}

// countPeerings begins to count what is new, and forgets the counts of what is gone.
func (n *network) countPeerings(plan sitePlan) {
	for id := range n.peerings {
		if plan.ranges[id] == nil && plan.accepts[id] == nil {
			delete(n.peerings, id)
		}
	}
	for _, list := range [...]map[string][]netip.Prefix{plan.ranges, plan.accepts} {
		for id := range list {
			if n.peerings[id] == nil {
				n.peerings[id] = &peeringState{}
			}
		}
	}
}

// openSite opens the tunnel of a plan, with no peers yet.
func (n *network) openSite(plan sitePlan, table *peeredTable) (err error) {
	if plan.role != holdsSite {
		table = nil
	} else if table == nil {
		if _, err := rand.Read(plan.table.Seed[:]); err != nil {
			return fmt.Errorf("read 32 random bytes for the table of peered flows: %w", err)
		}
		if table, err = newPeeredTable(plan.table); err != nil {
			return err
		}
	}
	s := &site{device: newSiteDevice("sallyport-site-"+n.id, n.fwd, siteSlots), table: table, links: map[string]*link{}, troubles: map[string]string{}}
	s.role, s.port, s.key = plan.role, plan.port, plan.key
	s.tun, err = tunnel.New(tunnel.Config{PrivateKey: plan.key, ListenPort: plan.port, Device: s.device, Offload: n.offload, Log: n.log})
	if err != nil {
		return fmt.Errorf("open the tunnel: %w", err)
	}
	n.site = s
	n.log.Info("site tunnel up", "relay", s.role == relaysToSite, "port", s.tun.ListenPort(), "public_key", s.tun.PublicKey().String())
	return nil
}

// changeSite gives the Forwarder the connections of a plan, ends the flows to ranges that
// were there before and are no more, and gives the open tunnel its peers. The error is
// about those peers that the tunnel did not take.
func (n *network) changeSite(plan sitePlan, before map[string][]netip.Prefix) error {
	s := n.site
	gone := s.keepLinks(plan)
	s.ranges, s.accepts, s.sitePlan.links, s.relayed = plan.ranges, plan.accepts, plan.links, plan.relayed
	n.publish()
	for id, ranges := range before {
		for _, r := range ranges {
			if !slices.Contains(plan.ranges[id], r) {
				n.fwd.revokePeered(r)
			}
		}
	}
	for id, l := range gone {
		n.closeLink(id, l)
	}
	if len(s.links) < len(plan.links) {
		n.openLinks()
		n.publish()
	}
	return errors.Join(n.changePeers(plan)...)
}

// changePeers brings the open tunnel's peers to a plan, and returns what failed.
func (n *network) changePeers(plan sitePlan) (failed []error) {
	s := n.site
	wanted := make(map[tunnel.Key]struct{}, len(plan.peers))
	for _, p := range plan.peers {
		wanted[p.PublicKey] = struct{}{}
	}
	n.keepForeign(func(id string) bool { return plan.peers[id].PublicKey != s.peers[id].PublicKey })
	stats := n.sitePeers()
	for _, p := range s.peers {
		if _, stays := wanted[p.PublicKey]; !stays {
			s.leave(p.PublicKey, stats[p.PublicKey].Endpoint)
			failed = append(failed, s.tun.RemovePeer(p.PublicKey))
		}
	}
	now := maps.Clone(plan.peers)
	for id, p := range plan.peers {
		old := s.peers[id]
		if old.PublicKey == p.PublicKey && old.Endpoint == p.Endpoint && old.Keepalive == p.Keepalive && slices.Equal(old.AllowedIPs, p.AllowedIPs) {
			continue
		}
		if old.PublicKey == p.PublicKey && old.Endpoint == p.Endpoint {
			p.Endpoint = netip.AddrPort{} // where it has moved to meanwhile counts
		}
		if err := s.tun.SetPeer(n.greeted(s.back(p))); err != nil {
			failed = append(failed, fmt.Errorf("peer %s: %w", id, err))
			delete(now, id) // to be tried again
		}
	}
	s.peers = now
	return failed
}

// leave takes note of where a peer is that is taken out.
func (s *site) leave(key tunnel.Key, at netip.AddrPort) {
	if !at.IsValid() {
		return
	}
	if s.left == nil || len(s.left) >= maxLeft {
		s.left = contacts{}
	}
	s.left[key] = at
}

// back adds to a peer that was taken out before where it was then. It may not have
// noticed, and would call only when its session is over.
func (s *site) back(p tunnel.Peer) tunnel.Peer {
	if at, ok := s.left[p.PublicKey]; ok && !p.Endpoint.IsValid() {
		p.Endpoint, p.Keepalive = at, greetInterval
	}
	delete(s.left, p.PublicKey)
	return p
}

// closeSite ends the tunnel, if there is one. Its flows go with the table, unless the
// caller keeps that.
func (n *network) closeSite() {
	s := n.site
	if s == nil {
		return
	}
	n.keepForeign(func(string) bool { return true })
	n.fwd.setPeered(&peered{})
	n.site = nil
	s.tun.Close()
	for id, l := range s.links {
		n.closeLink(id, l)
	}
	n.log.Info("site tunnel closed", "relay", s.role == relaysToSite)
}

// rememberPeers takes note of where the tunnel's peers are, so that the next one
// calls them: they do not notice by themselves that it is another.
func (n *network) rememberPeers() {
	for key, p := range n.sitePeers() {
		if p.Endpoint.IsValid() {
			if n.former == nil {
				n.former = contacts{}
			}
			n.former[key] = p.Endpoint
		}
	}
}

// insist makes a relay shake hands again that has not been answered yet: when a site
// moves, the other host may begin to listen a moment later, and WireGuard would ask
// only every 5 s.
func (n *network) insist() {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	s := n.site
	if s == nil || s.role != relaysToSite || s.reached {
		return
	}
	stats := n.sitePeers()
	for id, p := range s.peers {
		if s.reached = !stats[p.PublicKey].LastHandshake.IsZero(); !s.reached {
			if err := errors.Join(s.tun.RemovePeer(p.PublicKey), s.tun.SetPeer(p)); err != nil {
				n.log.Error("host with the site not called", "host", id, "error", err)
			}
		}
	}
}

// keepForeign takes note of what the tunnel has counted of peers that are about to go.
func (n *network) keepForeign(goes func(id string) bool) {
	stats := n.sitePeers()
	for id, p := range n.site.peers {
		if state := n.peerings[id]; state != nil && goes(id) {
			state.foreign += stats[p.PublicKey].Disallowed
		}
	}
}

// sitePeers returns what the tunnel knows of its peers.
func (n *network) sitePeers() map[tunnel.Key]tunnel.PeerStats {
	list, err := n.site.tun.Peers()
	if err != nil {
		return nil // it is closing
	}
	stats := make(map[tunnel.Key]tunnel.PeerStats, len(list))
	for _, p := range list {
		stats[p.PublicKey] = p
	}
	return stats
}

// siteReport is what the control plane and the operator see of the site tunnel; nil
// where it is not on this host. address is the host's.
func (n *network) siteReport(address netip.Addr) *spec.SiteReport {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	s := n.site
	if s == nil || s.role != holdsSite {
		return nil
	}
	r := &spec.SiteReport{
		PublicKey: s.tun.PublicKey().String(), Endpoint: netip.AddrPortFrom(address, s.tun.ListenPort()),
	}
	stats := n.sitePeers()
	for _, id := range slices.Sorted(maps.Keys(n.peerings)) {
		state, peer := n.peerings[id], stats[s.peers[id].PublicKey]
		r.Peerings = append(r.Peerings, spec.PeeringReport{
			ID: id, Handshake: handshake(peer), Foreign: state.foreign + state.counters.foreign.Load() + peer.Disallowed,
			Egress: state.counters.traffic(Egress), Ingress: state.counters.traffic(Ingress), Trouble: s.trouble(id),
		})
	}
	return r
}

// handshake is when a peer shook hands last, in UTC.
func handshake(p tunnel.PeerStats) time.Time {
	if p.LastHandshake.IsZero() {
		return time.Time{}
	}
	return p.LastHandshake.UTC()
}

func (c *peeringCounters) traffic(d Direction) spec.Traffic {
	return spec.Traffic{Packets: c.packets[d].Load(), Bytes: c.bytes[d].Load()}
}

// sweepPeered is one tick of the table of peered flows. Nobody acts on its events.
func (n *network) sweepPeered(events []nat.Event) {
	now := n.clock.Now()
	steps, more := 0, false
	n.fwd.withPeered(func(t *nat.Table) { steps = 1 + sessions(t.Stats())/(sweepBudget*sweepRound) })
	for ; more || steps > 0; steps-- {
		more = false // where the table is no more
		n.fwd.withPeered(func(t *nat.Table) {
			if steps > 0 {
				t.Expire(now, sweepBudget)
			}
			more = t.Drain(events) == len(events)
		})
	}
}
