package gateway

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// linkSlots is how many packets wait for a link at most.
const linkSlots = 256

// linkPlan is what one connection needs that has a device for itself.
type linkPlan struct {
	// junction and side are where another network is met; nil: it is a wire.
	junction *junction
	side     int
	wire     uplink.WireConfig
}

func (p linkPlan) equal(o linkPlan) bool {
	return p.junction == o.junction && p.side == o.side && p.wire.Equal(o.wire)
}

// link is a connection's own device and what moves packets between it and the far end,
// while it is open.
type link struct {
	plan   linkPlan
	device *siteDevice
	wire   Wire  // nil where another network is the other side
	down   error // why nothing passes by the wire now
	mtu    int   // of the way, in bytes
	pumps  sync.WaitGroup
}

// Wire is the far end of a link by an interface of this machine: packets as they are,
// as tun.Device has them, both ways.
type Wire interface {
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	Write(bufs [][]byte, offset int) (int, error)
	// MTU is the interface's, in bytes.
	MTU() int
	// Check sees to it that packets take the way that was asked for, and says why they
	// do not.
	Check() error
	// Close takes everything away, and ends Read.
	Close() error
}

// Wires opens wires.
type Wires interface {
	OpenWire(c uplink.WireConfig) (Wire, error)
	// Sweep takes away what wires of processes that died have left.
	Sweep() error
	// Addresses are the machine's own.
	Addresses() ([]netip.Addr, error)
}

// machine is the Wires of this machine.
type machine struct{}

func (machine) OpenWire(c uplink.WireConfig) (Wire, error) {
	w, err := uplink.OpenWire(c)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (machine) Sweep() error { return uplink.SweepWires() }

func (machine) Addresses() ([]netip.Addr, error) {
	k, err := hostnet.Here()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	held, err := k.Addresses()
	var list []netip.Addr
	for _, p := range held {
		if p.Addr().Is4() {
			list = append(list, p.Addr())
		}
	}
	return list, err
}

// junction is where the two networks of a peering connection meet: side 0 begins, side 1
// accepts. Either end may be missing; then what is sent there is dropped.
type junction struct {
	ends [2]atomic.Pointer[siteDevice]
}

// far is the Forwarder on the other side, or nil.
func (j *junction) far(side int) *Forwarder {
	if d := j.ends[1-side].Load(); d != nil {
		return d.fwd
	}
	return nil
}

// openLink opens the device of one connection and begins to move its packets.
func (n *network) openLink(id string, plan linkPlan) (l *link, err error) {
	l = &link{plan: plan, device: newSiteDevice("sallyport-link-"+id, n.fwd, linkSlots), mtu: n.fwd.mtu}
	if plan.junction != nil {
		plan.junction.ends[plan.side].Store(l.device)
		l.pumps.Go(l.cross)
		return l, nil
	}
	if l.wire, err = n.wires.OpenWire(plan.wire); err != nil {
		return nil, fmt.Errorf("peering %s by interface %s: %w", id, plan.wire.Interface, err)
	}
	l.mtu = min(l.mtu, l.wire.MTU())
	l.pumps.Go(l.sendWire)
	l.pumps.Go(l.readWire)
	n.log.Info("peering is up by an interface", "peering", id, "interface", plan.wire.Interface, "next_hop", plan.wire.NextHop, "mtu", l.mtu)
	return l, nil
}

// close ends the link and waits for its pumps. Its connection is in force no more.
func (l *link) close() (err error) {
	if j := l.plan.junction; j != nil {
		j.ends[l.plan.side].CompareAndSwap(l.device, nil)
	}
	l.device.Close()
	if l.wire != nil {
		err = l.wire.Close()
	}
	l.pumps.Wait()
	return err
}

// buffers are those of a pump.
func buffers(size int) ([][]byte, []int) {
	bufs := make([][]byte, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, wholeHeadroom+size)
	}
	return bufs, make([]int, batchSize)
}

// filled returns the packets of a batch, offset included. It uses the memory of list.
func filled(list, bufs [][]byte, sizes []int) [][]byte {
	list = list[:0]
	for i, n := range sizes {
		if n > 0 { // what was forgotten has no bytes
			list = append(list, bufs[i][:wholeHeadroom+n])
		}
	}
	return list
}

// cross gives the other network's Forwarder what this one's queued. It holds no lock
// meanwhile, and the other side only queues.
func (l *link) cross() {
	bufs, sizes := buffers(frameSize)
	var list [][]byte
	for {
		n, err := l.device.Read(bufs, sizes, wholeHeadroom)
		if err != nil {
			return
		}
		to := l.plan.junction.ends[1-l.plan.side].Load()
		if to == nil {
			l.device.fwd.counters.dropMany(Egress, packet.SiteDown, n)
			continue
		}
		list = filled(list, bufs, sizes[:n])
		_, _ = to.Write(list, wholeHeadroom) // what is dropped is counted there
	}
}

// sendWire carries what the Forwarder queued to the interface.
func (l *link) sendWire() {
	bufs, sizes := buffers(frameSize)
	var list [][]byte
	for {
		n, err := l.device.Read(bufs, sizes, wholeHeadroom)
		if err != nil {
			return
		}
		list = filled(list, bufs, sizes[:n])
		if k, err := l.wire.Write(list, wholeHeadroom); err != nil {
			l.device.fwd.counters.dropMany(Egress, packet.SiteDown, len(list)-k)
		}
	}
}

// readWire carries what the interface brought to the Forwarder, until the wire is closed.
func (l *link) readWire() {
	bufs, sizes := buffers(maxDatagram)
	var list [][]byte
	for {
		n, err := l.wire.Read(bufs, sizes, wholeHeadroom)
		if err != nil {
			return
		}
		list = filled(list, bufs, sizes[:n])
		_, _ = l.device.Write(list, wholeHeadroom) // what is dropped is counted there
	}
}

// leaveJunctions ends the flows that other networks' sandboxes have with sandboxes that
// are gone: whoever has an address next begins without them.
func (n *network) leaveJunctions(gone []spec.Attachment) {
	var others []*Forwarder
	n.siteMu.Lock()
	if n.site != nil {
		for _, l := range n.site.links {
			if j := l.plan.junction; j != nil && l.plan.side == 1 {
				if f := j.far(1); f != nil {
					others = append(others, f)
				}
			}
		}
	}
	n.siteMu.Unlock()
	for _, f := range others {
		for _, a := range gone {
			f.revokePeered(netip.PrefixFrom(a.Inner, a.Inner.BitLen()))
		}
	}
}

// keepLinks takes from the site the links that a plan has not, or has otherwise, and
// returns them.
func (s *site) keepLinks(plan sitePlan) (gone []*link) {
	for id, l := range s.links {
		if p, stays := plan.links[id]; !stays || !p.equal(l.plan) {
			gone = append(gone, l)
			delete(s.links, id)
		}
	}
	return gone
}

// openLinks opens those links of a plan that are not open, and returns what failed.
func (n *network) openLinks(plan sitePlan) (failed []error) {
	for _, id := range slices.Sorted(maps.Keys(plan.links)) {
		if n.site.links[id] != nil {
			continue
		}
		l, err := n.openLink(id, plan.links[id])
		if err != nil {
			failed = append(failed, err)
			continue
		}
		n.site.links[id] = l
	}
	return failed
}

// publish gives the Forwarder the connections of the site as they are.
func (n *network) publish() {
	s := n.site
	w := &peered{ranges: new(bart.Fast[*lane]), device: s.device, links: map[*siteDevice]*lane{}, table: s.table}
	if len(s.accepts) > 0 {
		w.accepts = new(bart.Fast[*lane])
	}
	for id, list := range s.ranges {
		l := n.lane(w, id)
		for _, r := range list {
			w.ranges.Insert(r, l)
		}
	}
	for id, list := range s.accepts {
		l := n.lane(w, id)
		l.accepts = true
		for _, r := range list {
			w.accepts.Insert(r, l)
		}
	}
	n.fwd.setPeered(w)
}

// lane is how packets of one connection go now.
func (n *network) lane(w *peered, id string) *lane {
	s := n.site
	l := &lane{peeringCounters: &n.peerings[id].counters, device: s.device, mtu: n.fwd.mtu}
	if _, own := s.sitePlan.links[id]; !own {
		return l
	}
	l.device = nil
	if open := s.links[id]; open != nil && open.down == nil {
		l.device, l.mtu, l.meets = open.device, open.mtu, open.wire == nil
		w.links[open.device] = l
	}
	return l
}

// tendLinks looks whether the wires lead where they should, and tells the Forwarder and
// the log, once, where they do not.
func (n *network) tendLinks() {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	if n.site == nil {
		return
	}
	changed := false
	for id, l := range n.site.links {
		if l.wire == nil {
			continue
		}
		err, mtu := l.wire.Check(), min(n.fwd.mtu, l.wire.MTU())
		if (err == nil) == (l.down == nil) && mtu == l.mtu {
			continue
		}
		switch {
		case err != nil && l.down == nil:
			n.log.Error("peering is down; its destinations are unreachable until it is mended", "peering", id, "error", err)
		case err == nil && l.down != nil:
			n.log.Info("peering is up again", "peering", id, "interface", l.plan.wire.Interface, "mtu", mtu)
		}
		l.down, l.mtu, changed = err, mtu, true
	}
	if changed {
		n.publish()
	}
}
