package sidecar

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

const (
	// keepalive is the interval of WireGuard's own empty packets. Probes are more
	// frequent; it is there so that a handshake is tried even when the gateway is away.
	keepalive = 25 * time.Second
	// unlistedLimit is how long the control plane may name a network's gateways
	// without one that it named before, as it does after a restart until all its
	// hosts have reported. Then the tunnel to that host goes after its flows.
	unlistedLimit = 30 * time.Second
)

// The MTUs that a network may have, in bytes: from what every host must take
// (RFC 791) to what a tunnel through an Ethernet with jumbo frames carries.
const (
	minMTU = 576
	maxMTU = 9000
)

// maxNameServers is how many name servers programs look at (resolv.conf(5)).
const maxNameServers = 3

// network is a network in which this worker has sandboxes, or which is passive for
// some that it has in another. Its fields are guarded by the sidecar's lock, but
// for info, pool, plane and watch, which never change.
type network struct {
	info      api.AttachedNetwork // as the first attachment had it
	plane     *controlPlane       // the control plane that it belongs to
	pool      *bufferPool         // of packets of its MTU
	watch     *watch              // nil: it is a passive one
	worker    netip.Addr          // the worker's own address
	sandboxes *directory
	links     map[string]*link // by gateway host
	attached  int              // attachments that use it
	asked     time.Time        // when the control plane last was asked for its gateways
	// passives counts, of a network that is active, its sandboxes by passive network.
	passives map[*network]int
}

// link is the tunnel to one gateway host of a network. Its fields are guarded by
// the sidecar's lock.
type link struct {
	network  *network
	gateway  spec.Gateway
	path     *path
	tunnel   *tunnel.Tunnel
	unlisted time.Time // since when the control plane names it no more; zero: it does
	received uint64    // bytes when last looked
	heard    time.Time // when they last had grown
	greeted  uint64    // the comparison in which it was greeted last
}

// neverGreeted is no comparison's number.
const neverGreeted = math.MaxUint64

// leaving says whether no flow may begin on the link any more.
func (l *link) leaving(now time.Time) bool {
	return !l.unlisted.IsZero() && now.Sub(l.unlisted) >= unlistedLimit
}

// join finds or makes the network of an attachment and counts it in, with tunnels
// to all gateways that the control plane named. The caller holds the lock.
func (s *Sidecar) join(p *controlPlane, resp api.AttachResponse) (*network, error) {
	if len(resp.Gateways) == 0 {
		return nil, errors.New("the control plane named no gateway")
	}
	if err := checkNetwork(resp.Network); err != nil {
		return nil, fmt.Errorf("what the control plane says of network %s cannot be: %w", resp.Network.ID, err)
	}
	key := networkKey{plane: p, id: resp.Attachment.Network}
	n, known := s.networks[key]
	if !known {
		n = &network{
			info: resp.Network, plane: p, pool: newBufferPool(resp.Network.MTU), sandboxes: newDirectory(),
			links: make(map[string]*link), passives: make(map[*network]int),
		}
		if p == s.home {
			var err error
			if n.watch, err = s.newNetworkWatch(n.info.ID); err != nil {
				return nil, err
			}
		}
	}
	s.networks[key] = n
	if err := s.connect(n, resp); err != nil {
		if !known {
			delete(s.networks, key)
			if n.watch != nil {
				n.watch.end()
			}
		}
		return nil, err
	}
	n.attached++
	return n, nil
}

// newNetworkWatch makes the watch of a network.
func (s *Sidecar) newNetworkWatch(id string) (*watch, error) {
	return newWatch(watchConfig{
		network: id, failover: s.cfg.Failover, linger: s.cfg.Linger, clock: s.clock,
		switches: s.switches, log: s.cfg.Log,
	})
}

// networkKey names a network.
type networkKey struct {
	plane *controlPlane
	id    string
}

// checkNetwork says what of a network a sandbox could not live with.
func checkNetwork(n api.AttachedNetwork) error {
	if n.MTU < minMTU || n.MTU > maxMTU {
		return fmt.Errorf("an MTU of %d, outside %d to %d", n.MTU, minMTU, maxMTU)
	}
	if len(n.DNS) == 0 {
		return errors.New("it has no name server")
	}
	for _, a := range n.DNS {
		if !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			return fmt.Errorf("the name server %q is not the IPv4 address of another host", a)
		}
	}
	return nil
}

// connect brings a network's tunnels and the worker's address up to date with an
// answer of the control plane: there is a tunnel to each gateway that it names. One
// that cannot be is no error as long as another can. The caller holds the lock.
func (s *Sidecar) connect(n *network, resp api.AttachResponse) error {
	worker := resp.Attachment.Worker
	if !worker.Is4() || !resp.Network.Gateway.Is4() {
		return fmt.Errorf("network %s: the worker's address %v or the gateway's %v is not an IPv4 address", resp.Network.ID, worker, resp.Network.Gateway)
	}
	now := time.Now()
	n.asked = now
	if n.worker != worker {
		n.worker = worker
		for _, l := range n.links {
			l.path.setWorker(worker)
		}
	}
	var errs []error
	changed := false
	for _, gw := range resp.Gateways {
		fresh, err := s.tie(n, gw)
		if err != nil {
			errs = append(errs, err)
		}
		changed = changed || fresh
	}
	if len(errs) == len(resp.Gateways) {
		return errors.Join(errs...)
	}
	for _, err := range errs {
		s.cfg.Log.Warn("a gateway that the control plane names cannot be used; others can", "network", n.info.ID, "error", err)
	}
	for host, l := range n.links {
		listed := slices.ContainsFunc(resp.Gateways, func(gw spec.Gateway) bool { return gw.Host == host })
		switch {
		case listed && !l.unlisted.IsZero():
			changed = changed || l.leaving(now)
			l.unlisted = time.Time{}
		case !listed && l.unlisted.IsZero():
			l.unlisted = now
		}
	}
	if changed {
		s.rearrange(n)
	}
	return nil
}

// tie finds or makes the link to a gateway host and brings it up to date. It says
// whether it is new. The caller holds the lock.
func (s *Sidecar) tie(n *network, gw spec.Gateway) (bool, error) {
	peer, err := tunnel.ParseKey(gw.PublicKey)
	if err != nil {
		return false, fmt.Errorf("gateway host %s of network %s: %w", gw.Host, gw.Network, err)
	}
	l := n.links[gw.Host]
	fresh := l == nil
	greeted := n.plane.round // a new peer is greeted by its keepalive
	switch {
	case fresh:
		if l, err = s.newLink(n, gw); err != nil {
			return false, err
		}
	case l.gateway.PublicKey != gw.PublicKey:
		if old, err := tunnel.ParseKey(l.gateway.PublicKey); err == nil {
			if err := l.tunnel.RemovePeer(old); err != nil {
				return false, err
			}
		}
	case l.gateway.Endpoint != gw.Endpoint:
		greeted = neverGreeted
	default:
		l.gateway = gw
		return false, nil
	}
	err = l.tunnel.SetPeer(tunnel.Peer{
		PublicKey: peer, AllowedIPs: []netip.Prefix{everything()}, Endpoint: gw.Endpoint, Keepalive: keepalive,
	})
	if err == nil && greeted != neverGreeted {
		err = l.tunnel.Await(peer) // a gateway that is told of the worker a moment later drops the first call
	}
	if err != nil {
		if fresh {
			l.tunnel.Close()
		}
		return false, err
	}
	l.gateway, l.greeted = gw, greeted
	n.links[gw.Host] = l
	return fresh, nil
}

func everything() netip.Prefix { return netip.PrefixFrom(netip.IPv4Unspecified(), 0) }

// newLink makes a tunnel without a peer.
func (s *Sidecar) newLink(n *network, gw spec.Gateway) (*link, error) {
	p := newPath(pathConfig{
		gateway: n.info.Gateway, mtu: n.info.MTU, sandboxes: n.sandboxes, pool: n.pool, clock: s.clock, count: &s.count,
	}, n.worker)
	t, err := tunnel.New(tunnel.Config{
		PrivateKey: s.key, Device: p, Batch: pathBatch, Calls: true, Offload: s.cfg.Sockets, Log: s.cfg.Log.With("network", n.info.ID, "gateway", gw.Host),
	})
	if err != nil {
		return nil, fmt.Errorf("gateway host %s of network %s: %w", gw.Host, gw.Network, err)
	}
	return &link{network: n, path: p, tunnel: t, heard: time.Now()}, nil
}

// part counts an attachment out of its network, and returns the tunnels to close
// if it was the last. The caller holds the lock, and closes without it.
func (s *Sidecar) part(n *network) []*link {
	if n.attached--; n.attached > 0 {
		return nil
	}
	delete(s.networks, networkKey{plane: n.plane, id: n.info.ID})
	gone := make([]*link, 0, len(n.links))
	for host, l := range n.links {
		gone = append(gone, l)
		delete(n.links, host)
	}
	return gone
}

// closeLinks ends tunnels. The caller holds no lock.
func closeLinks(links []*link) {
	for _, l := range links {
		l.tunnel.Close()
	}
}

// rearrange brings everything that depends on a network's links up to date after
// they have changed. The caller holds the lock.
func (s *Sidecar) rearrange(n *network) {
	for _, active := range s.networks {
		if active.watch != nil && (active == n || active.passives[n] > 0) {
			s.arrange(active)
		}
	}
}

// arrange brings the watch of an active network, its groups and the routes of its
// sandboxes up to date with its links and those of its passive networks. The
// caller holds the lock.
func (s *Sidecar) arrange(n *network) {
	wanted := make(map[*link]bool)
	for _, l := range n.links {
		wanted[l] = true
	}
	for passive := range n.passives {
		for _, l := range passive.links {
			wanted[l] = true
		}
	}
	var stale []*track
	for _, t := range n.watch.followed() {
		if !wanted[t.link] {
			stale = append(stale, t)
		}
		delete(wanted, t.link)
	}
	for l := range wanted {
		if n.watch.add(l) == nil {
			s.cfg.Log.Warn("the network has too many gateways; one is not used", "network", n.info.ID, "gateway", l.gateway.Host)
		}
	}
	tracks := n.watch.followed()
	for _, e := range s.entries {
		if e.network == n && e.sw != nil {
			s.reroute(e, tracks)
		}
	}
	now := time.Now()
	n.watch.arrange(func(key groupKey) []*track { return orderOf(tracks, stale, n, key, now) })
	for _, t := range stale {
		n.watch.remove(t)
	}
	if len(stale) > 0 {
		tracks = n.watch.followed()
		for _, e := range s.entries {
			if e.network == n && e.sw != nil {
				s.reroute(e, tracks)
			}
		}
	}
}

// orderOf is the order in which sandboxes prefer gateways: their own host, other
// hosts of the active network, then the same of the passive one.
func orderOf(tracks, without []*track, n *network, key groupKey, now time.Time) []*track {
	rank := func(t *track) int {
		switch {
		case t.link.network == n && t.host.Host == key.host:
			return 0
		case t.link.network == n:
			return 1
		case t.host.Host == key.standby:
			return 2
		}
		return 3
	}
	order := make([]*track, 0, len(tracks))
	for _, t := range tracks {
		if slices.Contains(without, t) || t.link.leaving(now) || t.link.network != n && t.link.network.info.ID != key.passive {
			continue
		}
		order = append(order, t)
	}
	slices.SortFunc(order, func(a, b *track) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.host.Host, b.host.Host))
	})
	return order
}

// reroute gives a sandbox that runs the routes that it may use among tracks. The
// caller holds the lock.
func (s *Sidecar) reroute(e *entry, tracks []*track) {
	var routes []route
	for _, t := range tracks {
		switch {
		case t.link.network == e.network:
			routes = append(routes, route{id: t.id, path: t.path})
		case e.passive != nil && t.link.network == e.passive.joined:
			routes = append(routes, route{id: t.id, path: t.path, there: &e.passive.there})
		}
	}
	e.sw.setRoutes(routes)
}

// regroup puts an attachment into the group of those with the same preferences.
// The caller holds the lock.
func (s *Sidecar) regroup(e *entry) {
	key := groupKey{host: e.host}
	if p := e.passive; p != nil && p.joined != nil {
		key.passive, key.standby = p.joined.info.ID, p.host
	}
	if e.group != nil && e.group.key == key {
		return
	}
	n, now := e.network, time.Now()
	tracks := n.watch.followed()
	order := orderOf(tracks, nil, n, key, now)
	// A group begins with the host that the control plane named first, because another
	// may be away, and with the one in use where there is one already: a host that
	// has not answered yet gets no new flows.
	first := orderOf(tracks, nil, n, groupKey{host: e.listed, passive: key.passive, standby: key.standby}, now)
	old := e.group
	if old != nil {
		used := old.choice.Load()
		slices.SortStableFunc(first, func(a, b *track) int {
			return boolRank(uint32(a.id) != used) - boolRank(uint32(b.id) != used)
		})
	}
	e.group = n.watch.enter(key, first, order)
	if e.sw != nil {
		n.watch.join(e.group, e.sw)
	}
	if old != nil {
		n.watch.leave(old, e.sw)
	}
}

// preferred returns the host that an attachment prefers, by role, and the one that
// the control plane named first because the preferred one may be away.
func preferred(gateways []spec.Gateway) (host, listed string) {
	host, listed = gateways[0].Host, gateways[0].Host
	for _, gw := range gateways {
		if gw.Role == spec.RoleActive {
			return gw.Host, listed
		}
	}
	return host, listed
}

// silent says whether nothing authentic came through the tunnel since the given
// time before now. The caller holds the lock.
func (l *link) silent(now time.Time, limit time.Duration) bool {
	peers, err := l.tunnel.Peers()
	if err != nil || len(peers) != 1 {
		return false
	}
	if r := peers[0].RxBytes; r != l.received {
		l.received, l.heard = r, now
	}
	return now.Sub(l.heard) >= limit
}

// greet shakes hands with the gateway anew. The tunnel repeats what is lost. The
// caller holds the lock.
func (l *link) greet() error {
	peer, err := tunnel.ParseKey(l.gateway.PublicKey)
	if err != nil {
		return err
	}
	return l.tunnel.Rehandshake(peer)
}

// dropLeaving ends the tunnels to hosts that the control plane names no more, once no
// flow needs them. The caller holds no lock.
func (s *Sidecar) dropLeaving() {
	var gone []*link
	for _, l := range s.leavingLinks() {
		if !s.unused(l) {
			continue
		}
		s.mu.Lock()
		if n := l.network; n.links[l.gateway.Host] == l && l.leaving(time.Now()) {
			delete(n.links, l.gateway.Host)
			s.rearrange(n)
			gone = append(gone, l)
		}
		s.mu.Unlock()
	}
	closeLinks(gone)
}

// leavingLinks lists the tunnels to hosts that the control plane names no more, and sees
// that no flow begins there.
func (s *Sidecar) leavingLinks() []*link {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var leaving []*link
	for _, n := range s.networks {
		before := len(leaving)
		for _, l := range n.links {
			if l.leaving(now) {
				leaving = append(leaving, l)
			}
		}
		if len(leaving) > before {
			s.rearrange(n)
		}
	}
	return leaving
}

// unused says whether no watch has a use for a link. The caller holds no lock.
func (s *Sidecar) unused(l *link) bool {
	s.mu.Lock()
	var watches []*watch
	for _, n := range s.networks {
		if n.watch != nil {
			watches = append(watches, n.watch)
		}
	}
	s.mu.Unlock()
	for _, w := range watches {
		for _, t := range w.followed() {
			if t.link == l && !w.idle(t) {
				return false
			}
		}
	}
	return true
}
