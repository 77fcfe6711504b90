package spec

import (
	"fmt"
	"net/netip"
	"time"
)

// Cursor is a place in the changes of one store. The zero value is before all of
// them. Revisions of two stores cannot be compared: one that is made anew counts
// from 1 again.
type Cursor struct {
	// Store names the store, by a text that no other store has.
	Store string `json:"store"`
	// Revision is the newest change that is known; 0: none.
	Revision uint64 `json:"revision"`
}

// Update is what a gateway is told when it follows the control plane.
//
// It brings a follower from the revision it asked for to Revision: drop
// everything first if Full, take State if there is one, then remove Detached,
// then add Attached. An ID may be in both lists: an attach that came to
// nothing was asked for again. An ID in Detached may be unknown to the follower.
// Attachments that bypass are not part of it.
type Update struct {
	// Store names the store whose Revision it is; see [Cursor].
	Store string `json:"store"`
	// Revision is counted up by one with each change; it begins at 1.
	Revision uint64 `json:"revision"`
	// Full says that the update holds everything there is.
	Full bool `json:"full,omitempty"`
	// State is set when the desired state changed, and in a full update.
	State *State `json:"state,omitempty"`
	// Attached are the attachments that are new, in the order in which they were made.
	Attached []Attachment `json:"attached,omitempty"`
	// Detached are the IDs of those that are gone. In a full update for a follower
	// that has something already, they are those that were ended last: it may keep for
	// a while what it has from a store before and this one does not know, but not these.
	Detached []string `json:"detached,omitempty"`
}

// Cursor returns the place in the store's changes that the update leads to.
func (u Update) Cursor() Cursor { return Cursor{Store: u.Store, Revision: u.Revision} }

// HostReport is what a gateway host tells the control plane about itself.
//
// A host reports the key and the endpoint of a network before it acknowledges
// the revision with the network's first attachment: whoever waits for that
// revision hands them to the worker.
type HostReport struct {
	Host   string `json:"host"`
	Region string `json:"region"`
	// Draining says that the host wants no new flows.
	Draining bool `json:"draining,omitempty"`
	// Networks are those for which the host runs a tunnel now, by ID.
	Networks []NetworkReport `json:"networks,omitempty"`
}

// Check says what is wrong with a report: each network and peering connection is
// named by an ID, networks once, and each key is one.
func (r HostReport) Check() error {
	seen := make(map[string]bool, len(r.Networks))
	for i, n := range r.Networks {
		if !ValidID(n.ID) {
			return fmt.Errorf("networks[%d].id: %q is not an ID", i, n.ID)
		}
		if seen[n.ID] {
			return fmt.Errorf("networks[%d].id: network %q is reported twice", i, n.ID)
		}
		seen[n.ID] = true
		if err := CheckPublicKey(n.PublicKey); err != nil {
			return fmt.Errorf("networks[%d].publicKey: %w", i, err)
		}
		if n.Site == nil {
			continue
		}
		if err := CheckPublicKey(n.Site.PublicKey); err != nil {
			return fmt.Errorf("networks[%d].site.publicKey: %w", i, err)
		}
		for j, p := range n.Site.Peerings {
			if !ValidID(p.ID) {
				return fmt.Errorf("networks[%d].site.peerings[%d].id: %q is not an ID", i, j, p.ID)
			}
		}
	}
	return nil
}

// NetworkReport is one network on one gateway host. Counters begin at 0 when the
// host opens the network and never fall while it is open.
type NetworkReport struct {
	// ID is the network's.
	ID string `json:"id"`
	// PublicKey is the host's WireGuard key of the network, in base64.
	PublicKey string `json:"publicKey"`
	// Endpoint is where workers send their datagrams.
	Endpoint netip.AddrPort `json:"endpoint"`
	// Peers is the number of WireGuard peers.
	Peers int `json:"peers,omitempty"`
	// Sessions are the live sessions per address of the pair, in its order.
	Sessions [2]int `json:"sessions"`
	// Draining says which addresses of the pair, in its order, the host holds and drains.
	Draining [2]bool `json:"draining,omitzero"`
	// Egress and Ingress count what passed, out of and back to the sandboxes.
	Egress  Traffic `json:"egress,omitzero"`
	Ingress Traffic `json:"ingress,omitzero"`
	// Drops are dropped packets by reason: the names of the closed set of outcomes.
	Drops map[string]uint64 `json:"drops,omitempty"`
	// WrongSource counts packets that would have left with a source outside the
	// pair and were stopped at the last check. Anything but 0 is a fault of ours.
	WrongSource uint64 `json:"wrongSource"`
	// UplinkLost says that what leaves from the host's addresses of the pair does
	// not come back: none of the configured targets answers.
	UplinkLost bool `json:"uplinkLost,omitempty"`
	// Uplink is the kind of the far side, sockets or tun; empty: the host does not say.
	Uplink string `json:"uplink,omitempty"`
	// UplinkChecked says that there are targets by which UplinkLost is found out.
	UplinkChecked bool `json:"uplinkChecked,omitempty"`
	// Site is the network's site tunnel, on the host that holds it; nil elsewhere.
	Site *SiteReport `json:"site,omitempty"`
}

// SiteReport is a network's site tunnel on the host that holds it.
type SiteReport struct {
	// PublicKey is the WireGuard key of the site tunnel, in base64. It is the same
	// on whichever host holds the tunnel.
	PublicKey string `json:"publicKey"`
	// Endpoint is where the other sides send their datagrams.
	Endpoint netip.AddrPort `json:"endpoint"`
	// Peerings are the active peering connections of the network, by ID.
	Peerings []PeeringReport `json:"peerings,omitempty"`
}

// PeeringReport is one peering connection on the host of the site tunnel.
type PeeringReport struct {
	// ID is the peering connection's.
	ID string `json:"id"`
	// Handshake is when the other side last shook hands; zero: never.
	Handshake time.Time `json:"handshake,omitzero"`
	// Egress and Ingress count what passed, out of and back to the sandboxes.
	Egress  Traffic `json:"egress,omitzero"`
	Ingress Traffic `json:"ingress,omitzero"`
	// Foreign counts packets of the other side that were dropped because their
	// source is in none of the connection's CIDRs.
	Foreign uint64 `json:"foreign"`
	// Trouble is why nothing can pass now: the interface or the other network is not
	// there. Of kind wireguard nothing is known.
	Trouble string `json:"trouble,omitempty"`
}

// Traffic is a pair of counters.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"` // of IP packets, headers included
}
