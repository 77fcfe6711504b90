package gateway

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	// linkSlots is how many packets wait for a link at most.
	linkSlots = 256
	// wireBatch is how many packets of an interface are read at once at most: each has
	// room for the longest, of which only what is used takes memory.
	wireBatch = 32
)

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
	wire   Wire         // nil where another network is the other side
	down   error        // why nothing passes by the wire now
	mtu    int          // of the way, in bytes
	own    []netip.Addr // in the ranges, but this machine's
	pumps  sync.WaitGroup
}

// Wire is the far end of a link by an interface of this machine: packets as they are,
// as tun.Device has them, both ways.
type Wire interface {
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	Write(bufs [][]byte, offset int) (int, error)
	// MTU is the interface's, in bytes.
	MTU() int
	// Own are addresses in the ranges that this machine takes for itself, in order.
	Own() []netip.Addr
	// Drops are the packets that were not carried, by reason.
	Drops() [packet.NumOutcomes]uint64
	// Check sees to it that packets take the way that was asked for, and says why they
	// do not. After [uplink.ErrWireGone] they never will: the wire must be opened anew.
	Check() error
	// Close takes everything away, and ends Read.
	Close() error
}

// Wires opens wires.
type Wires interface {
	OpenWire(c uplink.WireConfig) (Wire, error)
	// Sweep takes away what wires of processes that died have left. Until then that
	// drops packets, or is taken over by the connection's next wire.
	Sweep() error
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
	l.mtu, l.own = min(l.mtu, l.wire.MTU()), l.wire.Own()
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

// buffers are those of a pump, n of them.
func buffers(n, size int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, wholeHeadroom+size)
	}
	return bufs, make([]int, n)
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

// pump gives what a device hands out, batch by batch, until that says that it is closed.
// The packets have wholeHeadroom bytes in front, and are give's until it returns.
func pump(from interface {
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
}, batch, size int, give func(list [][]byte)) {
	bufs, sizes := buffers(batch, size)
	var list [][]byte
	for {
		n, err := from.Read(bufs, sizes, wholeHeadroom)
		if err != nil {
			return
		}
		list = filled(list, bufs, sizes[:n])
		give(list)
	}
}

// cross gives the other network's Forwarder what this one's queued. It holds no lock
// meanwhile, and the other side only queues.
func (l *link) cross() {
	pump(l.device, batchSize, frameSize, func(list [][]byte) {
		to := l.plan.junction.ends[1-l.plan.side].Load()
		if to == nil {
			l.device.fwd.counters.dropMany(Egress, packet.SiteDown, len(list))
			return
		}
		_, _ = to.Write(list, wholeHeadroom) // what is dropped is counted there
	})
}

// sendWire carries what the Forwarder queued to the interface.
func (l *link) sendWire() {
	pump(l.device, batchSize, frameSize, func(list [][]byte) {
		k, err := l.wire.Write(list, wholeHeadroom)
		if errors.Is(err, os.ErrClosed) { // else the wire counts what it does not carry
			l.device.fwd.counters.dropMany(Egress, packet.Closed, len(list)-k)
		}
	})
}

// readWire carries what the interface brought to the Forwarder, until the wire is closed.
func (l *link) readWire() {
	pump(l.wire, wireBatch, maxDatagram, func(list [][]byte) {
		_, _ = l.device.Write(list, wholeHeadroom) // what is dropped is counted there
	})
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
// returns them. Troubles with links that are not wanted any more are forgotten.
func (s *site) keepLinks(plan sitePlan) (gone map[string]*link) {
	gone = map[string]*link{}
	for id, l := range s.links {
		if p, stays := plan.links[id]; !stays || !p.equal(l.plan) {
			gone[id] = l
			delete(s.links, id)
		}
	}
	for id := range s.troubles {
		if p, stays := plan.links[id]; !stays || !p.equal(s.sitePlan.links[id]) {
			delete(s.troubles, id)
		}
	}
	return gone
}

// linkRetry is the pause between attempts to open links that could not be opened.
const linkRetry = 2 * time.Second

// openLinks opens those links of the plan that are not open. What fails takes down its own
// connection alone: the log is told once, and tendLinks tries again.
func (n *network) openLinks() {
	s := n.site
	s.tried = time.Now()
	for _, id := range slices.Sorted(maps.Keys(s.sitePlan.links)) {
		if s.links[id] != nil {
			continue
		}
		l, err := n.openLink(id, s.sitePlan.links[id])
		if err == nil {
			s.links[id] = l
			delete(s.troubles, id)
			continue
		}
		if text := err.Error(); s.troubles[id] != text { // the same every two seconds helps nobody
			s.troubles[id] = text
			n.log.Error("peering is down; its destinations are unreachable; trying again", "peering", id, "error", err)
		}
	}
}

// closeLink closes a link and keeps what it counted.
func (n *network) closeLink(id string, l *link) {
	if l.wire != nil {
		defer func() {
			for o, lost := range l.wire.Drops() {
				n.wireDrops[o] += lost
			}
		}()
	}
	if err := l.close(); err != nil {
		n.log.Error("peering not taken away in full", "peering", id, "error", err)
	}
}

// linkDrops are the packets that wires of the network did not carry, by reason.
func (n *network) linkDrops() (drops [packet.NumOutcomes]uint64) {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	drops = n.wireDrops
	if n.site == nil {
		return drops
	}
	for _, l := range n.site.links {
		if l.wire != nil {
			for o, lost := range l.wire.Drops() {
				drops[o] += lost
			}
		}
	}
	return drops
}

// trouble says why nothing passes by a connection that has a link; "": something does,
// or it has none. siteMu is held.
func (s *site) trouble(id string) string {
	plan, own := s.sitePlan.links[id]
	l := s.links[id]
	switch {
	case !own:
		return ""
	case l == nil:
		return s.troubles[id]
	case l.down != nil:
		return l.down.Error()
	case plan.junction != nil && plan.junction.far(plan.side) == nil:
		return "the other network, or its site, is not up on this host"
	}
	return ""
}

// publish gives the Forwarder the connections of the site as they are.
func (n *network) publish() {
	s := n.site
	w := &peered{ranges: new(bart.Fast[*lane]), device: s.device, links: map[*siteDevice]*lane{}, table: s.table, relayed: s.relayed}
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
		l.device, l.mtu, l.own = open.device, open.mtu, open.own
		l.junction, l.side = open.plan.junction, open.plan.side
		w.links[open.device] = l
	}
	return l
}

// tendLinks looks whether the wires lead where they should, and tells the Forwarder and
// the log, once, where they do not. What could not be opened is tried again, and what is
// gone is opened anew.
func (n *network) tendLinks() {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	s := n.site
	if s == nil {
		return
	}
	changed := false
	for id, l := range s.links {
		if l.wire != nil && n.tendLink(id, l) {
			changed = true
		}
	}
	if changed {
		n.publish()
	}
	n.closeGone()
	if len(s.links) < len(s.sitePlan.links) && time.Since(s.tried) >= linkRetry {
		before := len(s.links)
		n.openLinks()
		if len(s.links) > before {
			n.publish()
		}
	}
}

// closeGone closes the links whose wire is gone. The Forwarder uses them no more.
func (n *network) closeGone() {
	for id, l := range n.site.links {
		if errors.Is(l.down, uplink.ErrWireGone) {
			delete(n.site.links, id)
			n.site.troubles[id] = l.down.Error() // until the next one is open
			n.closeLink(id, l)
		}
	}
}

// tendLink is tendLinks for one wire. It reports whether something is otherwise.
func (n *network) tendLink(id string, l *link) (changed bool) {
	err := l.wire.Check()
	mtu, own := min(n.fwd.mtu, l.wire.MTU()), l.wire.Own()
	switch {
	case err != nil && (l.down == nil || l.down.Error() != err.Error()):
		n.log.Error("peering is down; its destinations are unreachable until it is mended", "peering", id, "error", err)
	case err == nil && l.down != nil:
		n.log.Info("peering is up again", "peering", id, "interface", l.plan.wire.Interface, "mtu", mtu)
	}
	changed = (err == nil) != (l.down == nil) || mtu != l.mtu || !slices.Equal(own, l.own)
	l.down, l.mtu, l.own = err, mtu, own
	return changed
}
