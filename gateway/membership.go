package gateway

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/policy"
	"github.com/sallyport-net/sallyport/tunnel"
)

// members is who is attached to one network, and what follows from it for the
// policy (inner address -> subject) and for WireGuard (key -> allowed
// addresses). One goroutine changes it; the packet path sees its results only.
type members struct {
	attached map[string]spec.Attachment // by id
	peers    map[tunnel.Key]*peer
	changed  map[tunnel.Key]struct{} // peers that WireGuard does not know as they are
	pinned   map[netip.Addr]int      // see rules; not changed once it is in force
	// moved says that sidecars came, went or changed their address since the policy was
	// told of them.
	moved bool
}

// peer is one WireGuard peer: a sidecar, or a stock client.
type peer struct {
	worker netip.Addr // the sidecar's own inner address, if it has one
	inner  map[netip.Addr]struct{}
	// told says that WireGuard has the peer with all addresses but those of changed, so
	// that no more is said than that: a worker may have very many sandboxes.
	told    bool
	changed map[netip.Addr]struct{}
}

// change notes that an address came to the peer, or went.
func (p *peer) change(a netip.Addr) {
	if p.changed == nil {
		p.changed = map[netip.Addr]struct{}{}
	}
	p.changed[a] = struct{}{}
}

func newMembers() members {
	return members{
		attached: map[string]spec.Attachment{}, peers: map[tunnel.Key]*peer{}, changed: map[tunnel.Key]struct{}{},
	}
}

// add takes one attachment in, whose id is not known. It reports an error, and
// changes nothing, when its key does not parse.
func (m *members) add(a spec.Attachment) error {
	key, err := tunnel.ParseKey(a.PublicKey)
	if err != nil {
		return fmt.Errorf("attachment %s: public key: %w", a.ID, err)
	}
	m.attached[a.ID] = a
	p := m.peers[key]
	if p == nil {
		p = &peer{inner: map[netip.Addr]struct{}{}}
		m.peers[key] = p
	}
	if len(p.inner) == 0 {
		p.change(p.worker)
		m.moved = true
	}
	p.inner[a.Inner] = struct{}{}
	p.change(a.Inner)
	if a.Worker.IsValid() && a.Worker != p.worker {
		p.change(p.worker)
		p.change(a.Worker)
		p.worker, m.moved = a.Worker, true
	}
	m.changed[key] = struct{}{}
	return nil
}

// remove lets one attachment go and returns it.
func (m *members) remove(id string) (spec.Attachment, bool) {
	a, ok := m.attached[id]
	if !ok {
		return a, false
	}
	delete(m.attached, id)
	key, _ := tunnel.ParseKey(a.PublicKey) // parsed when it was added
	p := m.peers[key]
	delete(p.inner, a.Inner)
	p.change(a.Inner)
	if len(p.inner) == 0 {
		p.change(p.worker)
		m.moved = true
	}
	m.changed[key] = struct{}{}
	return a, true
}

// leave lets go what an update says is gone, or is another than it was, and
// returns it with what of the update is new.
func (m *members) leave(full bool, attached []spec.Attachment, detached []string) (gone, come []spec.Attachment) {
	drop := func(id string) {
		if a, ok := m.remove(id); ok {
			gone = append(gone, a)
		}
	}
	for _, id := range detached {
		drop(id)
	}
	named := make(map[string]struct{}, len(attached))
	for _, a := range attached {
		named[a.ID] = struct{}{}
		if old, ok := m.attached[a.ID]; ok {
			if old.Created = a.Created; old == a {
				continue
			}
			drop(a.ID)
		}
		come = append(come, a)
	}
	if full {
		for id := range m.attached {
			if _, ok := named[id]; !ok {
				drop(id)
			}
		}
	}
	return gone, come
}

// workers returns the inner addresses that belong to sidecars themselves.
func (m *members) workers() map[netip.Addr]struct{} {
	set := make(map[netip.Addr]struct{}, len(m.peers))
	for _, p := range m.peers {
		if p.worker.IsValid() && len(p.inner) > 0 {
			set[p.worker] = struct{}{}
		}
	}
	return set
}

// allows reports whether packets of an address may come from the peer. Nothing passes of
// one that has no sandbox.
func (p *peer) allows(a netip.Addr) bool {
	_, sandbox := p.inner[a]
	return sandbox || a == p.worker && len(p.inner) > 0
}

// changes returns which addresses came to the peer and which went since WireGuard was
// told of it.
func (p *peer) changes() (more, less []netip.Prefix) {
	for a := range p.changed {
		switch one := netip.PrefixFrom(a, a.BitLen()); {
		case !a.IsValid():
		case p.allows(a):
			more = append(more, one)
		default:
			less = append(less, one)
		}
	}
	return more, less
}

// allowed returns a peer's allowed addresses as WireGuard wants them.
func (p *peer) allowed() []netip.Prefix {
	prefixes := make([]netip.Prefix, 0, len(p.inner)+1)
	for a := range p.inner {
		prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	if p.worker.IsValid() {
		prefixes = append(prefixes, netip.PrefixFrom(p.worker, p.worker.BitLen()))
	}
	return prefixes
}

// subject is what rules can say about an attachment.
func subject(a spec.Attachment) policy.Subject {
	return policy.Subject{
		Project:     a.Project,
		Environment: a.Environment,
		Kind:        string(a.Kind),
		Runtime:     string(a.Runtime),
	}
}

// workerKind is the subject kind of a sidecar's own address. No rule can name
// it, since attachments are functions or builds.
const workerKind = "worker"

// apply brings the network to a new set of members. What leaves goes first:
// its peer, its policy, its flows; so an address that another sandbox gets in the
// same update brings nothing along. What comes is known to the policy before
// WireGuard lets its first packet in.
func (n *network) apply(full bool, attached []spec.Attachment, detached []string) {
	gone, come := n.members.leave(full, attached, detached)
	if len(gone) > 0 {
		n.applyPeers(come)
		n.enforce(gone, nil)
		for _, a := range gone {
			n.fwd.Revoke(a.Inner)
		}
		n.leaveJunctions(gone)
	}
	added := come[:0]
	for _, a := range come {
		if err := n.members.add(a); err != nil {
			n.log.Error("attachment refused", "error", err)
			continue
		}
		added = append(added, a)
	}
	if len(added) > 0 {
		n.enforce(nil, added)
		n.applyPeers(nil)
	}
	n.former = nil
}

// enforce puts in force who has gone and come, and which addresses are sidecars'.
func (n *network) enforce(gone, come []spec.Attachment) {
	s, before := n.fwd.Policy()
	workers := before
	if n.members.moved {
		workers, n.members.moved = n.members.workers(), false
	}
	for w := range before {
		if _, stays := workers[w]; !stays {
			s = s.Without(w)
		}
	}
	for _, a := range gone {
		s = s.Without(a.Inner)
	}
	for _, a := range come {
		s = s.With(a.Inner, subject(a))
	}
	for w := range workers {
		if _, there := before[w]; !there {
			s = s.With(w, policy.Subject{Kind: workerKind})
		}
	}
	n.pin(gone, come)
	n.fwd.SetPolicy(s, workers)
}

// pin follows attachments that name another egress IP than their address stands for,
// as a control plane of another version may: the attachment is the authority.
func (n *network) pin(gone, come []spec.Attachment) {
	next, m := maps.Clone(n.members.pinned), &n.members
	for _, a := range gone {
		delete(next, a.Inner)
	}
	for _, a := range come {
		if side := slices.Index(n.pair[:], a.Egress); side >= 0 && side != spec.EgressIndex(a.Inner) {
			if next == nil {
				next = map[netip.Addr]int{}
			}
			next[a.Inner] = side
		}
	}
	if !maps.Equal(m.pinned, next) {
		m.pinned = next
		n.fwd.Pin(next)
	}
}

// setPolicy puts compiled rules in force for everybody who is attached.
func (n *network) setPolicy(s *policy.Snapshot) {
	workers := n.members.workers()
	for _, a := range n.members.attached {
		s = s.With(a.Inner, subject(a))
	}
	for w := range workers {
		s = s.With(w, policy.Subject{Kind: workerKind})
	}
	n.fwd.SetPolicy(s, workers)
}

// applyPeers tells WireGuard about the peers that changed. A peer that has no
// sandbox left is removed, unless one of its comes in the same update: it
// keeps its session meanwhile.
func (n *network) applyPeers(come []spec.Attachment) {
	m := &n.members
	back := make(map[string]struct{}, len(come))
	for _, a := range come {
		back[a.PublicKey] = struct{}{}
	}
	for key := range m.changed {
		p := m.peers[key]
		var err error
		if _, stays := back[key.String()]; len(p.inner) > 0 || stays {
			err = n.tell(key, p)
		} else {
			delete(m.peers, key)
			err = n.tun.RemovePeer(key)
		}
		if err != nil {
			n.log.Error("WireGuard peer not changed", "peer", key.String(), "error", err)
		}
	}
	clear(m.changed)
	n.peers.Store(int64(len(m.peers)))
}

// tell tells WireGuard of one peer: only what changed, where it knows the rest.
func (n *network) tell(key tunnel.Key, p *peer) (err error) {
	if p.told {
		more, less := p.changes()
		err = n.tun.Allow(key, more, less)
	} else {
		err = n.tun.SetPeer(n.greeted(p.wireGuard(key)))
	}
	p.told = err == nil
	clear(p.changed)
	return err
}

// wireGuard is a peer in WireGuard's words. Nothing passes of one that has no sandbox.
func (p *peer) wireGuard(key tunnel.Key) tunnel.Peer {
	w := tunnel.Peer{PublicKey: key}
	if len(p.inner) > 0 {
		w.AllowedIPs = p.allowed()
	}
	return w
}
