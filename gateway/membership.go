package gateway

import (
	"fmt"
	"maps"
	"net/netip"

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
}

// peer is one WireGuard peer: a sidecar, or a stock client.
type peer struct {
	worker  netip.Addr // the sidecar's own inner address, if it has one
	inner   map[netip.Addr]struct{}
	changed bool
}

func newMembers() members {
	return members{attached: map[string]spec.Attachment{}, peers: map[tunnel.Key]*peer{}}
}

// add takes one attachment in. It reports an error, and changes nothing, when
// its key does not parse.
func (m *members) add(a spec.Attachment) error {
	key, err := tunnel.ParseKey(a.PublicKey)
	if err != nil {
		return fmt.Errorf("attachment %s: public key: %w", a.ID, err)
	}
	if old, ok := m.attached[a.ID]; ok {
		if old == a {
			return nil
		}
		m.remove(a.ID)
	}
	m.attached[a.ID] = a
	p := m.peers[key]
	if p == nil {
		p = &peer{inner: map[netip.Addr]struct{}{}}
		m.peers[key] = p
	}
	p.inner[a.Inner] = struct{}{}
	if a.Worker.IsValid() {
		p.worker = a.Worker
	}
	p.changed = true
	return nil
}

// remove lets one attachment go and returns it.
func (m *members) remove(id string) (spec.Attachment, bool) {
	a, ok := m.attached[id]
	if !ok {
		return a, false
	}
	delete(m.attached, id)
	if key, err := tunnel.ParseKey(a.PublicKey); err == nil && m.peers[key] != nil {
		delete(m.peers[key].inner, a.Inner)
		m.peers[key].changed = true
	}
	return a, true
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

// allowed returns a peer's allowed addresses as WireGuard wants them.
func (p *peer) allowed() []netip.Prefix {
	prefixes := make([]netip.Prefix, 0, len(p.inner)+1)
	for a := range maps.Keys(p.inner) {
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

// apply brings the network to a new set of members. What leaves goes first:
// its peer, its policy, its flows. What comes is known to the policy before
// WireGuard lets its first packet in.
func (n *network) apply(full bool, attached []spec.Attachment, detached []string) {
	if full {
		keep := make(map[string]struct{}, len(attached))
		for _, a := range attached {
			keep[a.ID] = struct{}{}
		}
		for id := range n.members.attached {
			if _, ok := keep[id]; !ok {
				detached = append(detached, id)
			}
		}
	}
	var gone []spec.Attachment
	for _, id := range detached {
		if a, ok := n.members.remove(id); ok {
			gone = append(gone, a)
		}
	}
	n.applyPeers()
	snapshot := n.fwd.Policy()
	for _, a := range gone {
		snapshot = snapshot.Without(a.Inner)
	}
	for _, a := range attached {
		if err := n.members.add(a); err != nil {
			n.log.Error("attachment refused", "error", err)
			continue
		}
		snapshot = snapshot.With(a.Inner, subject(a))
		if a.Worker.IsValid() {
			snapshot = snapshot.With(a.Worker, policy.Subject{Kind: workerKind})
		}
	}
	n.fwd.SetWorkers(n.members.workers())
	n.fwd.SetPolicy(snapshot)
	for _, a := range gone {
		n.fwd.Revoke(a.Inner)
	}
	n.applyPeers()
}

// workerKind is the subject kind of a sidecar's own address. No rule can name
// it, since attachments are functions or builds.
const workerKind = "worker"

// applyPeers tells WireGuard about the peers that changed.
func (n *network) applyPeers() {
	for key, p := range n.members.peers {
		if !p.changed {
			continue
		}
		p.changed = false
		var err error
		if len(p.inner) == 0 {
			delete(n.members.peers, key)
			if p.worker.IsValid() {
				n.fwd.SetPolicy(n.fwd.Policy().Without(p.worker))
			}
			err = n.tun.RemovePeer(key)
		} else {
			err = n.tun.SetPeer(tunnel.Peer{PublicKey: key, AllowedIPs: p.allowed()})
		}
		if err != nil {
			n.log.Error("WireGuard peer not changed", "peer", key, "error", err)
		}
	}
}
