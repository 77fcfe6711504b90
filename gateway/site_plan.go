package gateway

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/tunnel"
)

// siteKeepalive is how often a tunnel with a known endpoint sends, so that the way to
// it stays open through what is between.
const siteKeepalive = 25 * time.Second

// relayPeer names the network's other host among the peers of a site tunnel. It is no
// ID of a peering connection.
const relayPeer = "the network's other host"

// passes says whether a connection carries packets: both sides want it.
func (h *Host) passes(p spec.Peering) bool { return h.state.PeeringState(p) == spec.PeeringActive }

// peeredRanges are the ranges that a network's sandboxes reach by active peering
// connections.
func (h *Host) peeredRanges(network string) (ranges []netip.Prefix) {
	for _, p := range h.state.Peerings {
		if p.Network == network && h.passes(p) {
			ranges = append(ranges, h.state.RangesOf(p, network)...)
		}
	}
	return ranges
}

// settleSite brings an open network's site tunnel to the desired state. What fails is
// tried again like a network that failed; the network goes on without.
func (h *Host) settleSite(n *network, w spec.Network) {
	plan, err := h.planSite(w)
	if err != nil {
		plan = sitePlan{}
	}
	err = errors.Join(err, n.setSite(plan))
	if err == nil {
		n.siteFailure = ""
		return
	}
	h.failures.Add(1)
	if text := err.Error(); text != n.siteFailure { // the same every two seconds helps nobody
		n.siteFailure = text
		n.log.Error("site tunnel not as desired; peered destinations are unreachable; trying again", "error", err)
	}
}

// planSite says what a network's site tunnel is on this host.
func (h *Host) planSite(n spec.Network) (plan sitePlan, err error) {
	if n.Site == nil {
		return plan, nil
	}
	secret := h.cfg.RegionSecret
	if len(secret) == 0 {
		return plan, fmt.Errorf("the keys of the site tunnel on host %s derive from the region's secret, which this host does not have: name its file in region_secret_file, the same on all hosts of the region", n.Site.Host)
	}
	siteKey, err := tunnel.DeriveSiteKey(secret, n.ID)
	if err != nil {
		return plan, err
	}
	plan.peers, plan.ranges, plan.accepts, plan.links = map[string]tunnel.Peer{}, map[string][]netip.Prefix{}, map[string][]netip.Prefix{}, map[string]linkPlan{}
	for _, p := range h.state.Peerings {
		ranges := h.state.RangesOf(p, n.ID)
		switch {
		case !h.passes(p) || len(ranges) == 0:
		case p.Network == n.ID:
			plan.ranges[p.ID] = ranges
		default:
			plan.accepts[p.ID] = ranges
		}
	}
	if n.Site.Host != h.cfg.Daemon.Host {
		return h.planRelay(n, plan, siteKey.Public())
	}
	plan.role, plan.key, plan.port = holdsSite, siteKey, n.Site.Port
	plan.table = config.NATConfig(h.cfg.Daemon, n, netip.Addr{})
	plan.table.Identity, plan.table.Reserved, plan.table.PortBlock, plan.table.TCPMapping = true, nil, 0, nat.AddressAndPortDependent
	if err := h.checkSitePort(n); err != nil {
		return plan, err
	}
	for _, host := range h.state.HostsOf(n) {
		if host == h.cfg.Daemon.Host {
			continue
		}
		key, err := tunnel.DeriveRelayKey(secret, n.ID, host)
		if err != nil {
			return plan, err
		}
		plan.relayed = true
		plan.peers[relayPeer] = tunnel.Peer{PublicKey: key.Public(), AllowedIPs: []netip.Prefix{n.CIDR}}
	}
	h.planLinks(n, &plan)
	for _, p := range h.state.Peerings {
		if p.Network != n.ID || !h.passes(p) || p.By() != spec.ByWireGuard {
			continue
		}
		key, err := tunnel.ParseKey(p.PublicKey)
		if err != nil {
			return plan, fmt.Errorf("peering %s: public key: %w", p.ID, err)
		}
		peer := tunnel.Peer{PublicKey: key, AllowedIPs: p.CIDRs, Endpoint: p.Endpoint}
		if p.Endpoint.IsValid() {
			peer.Keepalive = siteKeepalive
		}
		plan.peers[p.ID] = peer
	}
	return plan, nil
}

// planLinks adds the connections of a network that do not pass by its site tunnel, which
// is here.
func (h *Host) planLinks(n spec.Network, plan *sitePlan) {
	for _, p := range h.state.Peerings {
		if plan.ranges[p.ID] == nil && plan.accepts[p.ID] == nil {
			continue
		}
		switch p.By() {
		case spec.ByInterface:
			plan.links[p.ID] = linkPlan{wire: wireConfig(p, n)}
		case spec.ByNetwork:
			side := 0
			if p.Network != n.ID {
				side = 1
			}
			if h.junctions[p.ID] == nil {
				h.junctions[p.ID] = &junction{}
			}
			plan.links[p.ID] = linkPlan{junction: h.junctions[p.ID], side: side}
		}
	}
}

// wireConfig is what a peering by an interface asks for.
func wireConfig(p spec.Peering, n spec.Network) uplink.WireConfig {
	return uplink.WireConfig{ID: p.ID, Network: n.CIDR, Ranges: p.CIDRs, Interface: p.Interface, NextHop: p.NextHop}
}

// forgetJunctions lets those go whose peering is no more.
func (h *Host) forgetJunctions() {
	active := map[string]bool{}
	for _, p := range h.state.Peerings {
		active[p.ID] = h.passes(p)
	}
	maps.DeleteFunc(h.junctions, func(id string, _ *junction) bool { return !active[id] })
}

// planRelay is planSite where another host has the tunnel.
func (h *Host) planRelay(n spec.Network, plan sitePlan, siteKey tunnel.Key) (sitePlan, error) {
	host, err := h.hostOf(n.Region, n.Site.Host)
	if err != nil {
		return plan, err
	}
	key, err := tunnel.DeriveRelayKey(h.cfg.RegionSecret, n.ID, h.cfg.Daemon.Host)
	if err != nil {
		return plan, err
	}
	port, ok := h.relays[n.ID]
	if !ok {
		return plan, errors.New("no WireGuard port is left for the tunnel to the host with the site: widen wireguard.ports")
	}
	plan.role, plan.key, plan.port = relaysToSite, key, port
	plan.peers[n.Site.Host] = tunnel.Peer{
		PublicKey: siteKey, Endpoint: netip.AddrPortFrom(host.Endpoint, n.Site.Port), Keepalive: siteKeepalive,
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)},
	}
	return plan, nil
}

// hostOf finds a host of a region.
func (h *Host) hostOf(region, name string) (spec.Host, error) {
	r, _ := h.state.Region(region)
	for _, host := range r.Hosts {
		if host.Name == name {
			return host, nil
		}
	}
	return spec.Host{}, fmt.Errorf("the site tunnel is on host %q, which region %s does not have: correct the network's site", name, region)
}

// checkSitePort says why this host cannot have a site tunnel on its port: all
// WireGuard ports lie in one range, because translation leaves that out.
func (h *Host) checkSitePort(n spec.Network) error {
	r := h.cfg.Daemon.WireGuard.Ports
	if n.Site.Port < r.First || n.Site.Port > r.Last {
		return fmt.Errorf("port %d of the site tunnel lies outside wireguard.ports %d-%d of this host, which are kept from translation: choose one inside, or widen the range", n.Site.Port, r.First, r.Last)
	}
	for id, port := range h.ports {
		if port == n.Site.Port {
			return fmt.Errorf("port %d of the site tunnel is that of network %s on this host: choose another", n.Site.Port, id)
		}
	}
	return nil
}
