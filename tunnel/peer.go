package tunnel

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// maxKeepalive is the longest interval that WireGuard takes: 16 bits of seconds.
const maxKeepalive = math.MaxUint16 * time.Second

// Peer is another tunnel.
type Peer struct {
	// PublicKey names the peer.
	PublicKey Key
	// AllowedIPs are the addresses behind the peer: packets to them go there,
	// and packets from there with any other source are dropped. A prefix
	// belongs to one peer at a time; setting it here takes it from another.
	AllowedIPs []netip.Prefix
	// Endpoint is where the peer listens. The zero value leaves it as it is: a
	// peer without one is learnt from its first authenticated packet, as every
	// peer's is when it moves.
	Endpoint netip.AddrPort
	// Keepalive is the interval of empty packets, in whole seconds up to 65535
	// (rounded up). Turning it on sends one at once, which shakes hands. 0 sends none.
	Keepalive time.Duration
}

// PeerStats is what a tunnel knows about a peer.
type PeerStats struct {
	PublicKey     Key
	AllowedIPs    []netip.Prefix
	Endpoint      netip.AddrPort // invalid while none is known
	LastHandshake time.Time      // zero while there was none
	RxBytes       uint64         // authenticated bytes received, with WireGuard's overhead
	TxBytes       uint64         // bytes sent, with WireGuard's overhead
	Keepalive     time.Duration
	// Disallowed counts packets of the peer that were dropped because their source is
	// none of AllowedIPs, since the peer was added.
	Disallowed uint64
}

// known is a peer that WireGuard has.
type known struct{ allowed map[netip.Prefix]struct{} }

// ErrUnknownPeer says that a tunnel has no such peer.
var ErrUnknownPeer = errors.New("the tunnel has no such peer")

// SetPeer adds a peer, or changes the one with the same key: its allowed
// addresses become exactly the given ones. Addresses that stay are not touched,
// so packets for them flow on during the call.
func (t *Tunnel) SetPeer(p Peer) error {
	if err := t.checkPeer(p); err != nil {
		return fmt.Errorf("set peer %s of the tunnel %s: %w", p.PublicKey, t.public, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed() {
		return fmt.Errorf("set peer %s of the tunnel %s: %w", p.PublicKey, t.public, ErrClosed)
	}
	wanted := make(map[netip.Prefix]struct{}, len(p.AllowedIPs))
	for _, prefix := range p.AllowedIPs {
		wanted[prefix.Masked()] = struct{}{}
	}
	k := t.peers[p.PublicKey]
	if k == nil {
		k = &known{make(map[netip.Prefix]struct{})}
	}
	var more, less []netip.Prefix
	for prefix := range k.allowed {
		if _, stays := wanted[prefix]; !stays {
			less = append(less, prefix)
		}
	}
	for prefix := range wanted {
		if _, there := k.allowed[prefix]; !there {
			more = append(more, prefix)
		}
	}
	if p.Endpoint.IsValid() && t.bind.want(p.Endpoint.Addr()) {
		if err := t.dev.BindUpdate(); err != nil {
			return fmt.Errorf("open a socket for peer %s of the tunnel %s: %w", p.PublicKey, t.public, err)
		}
	}
	began := time.Now()
	if err := t.dev.IpcSet(p.config(more, less)); err != nil {
		return fmt.Errorf("set peer %s of the tunnel %s: %w", p.PublicKey, t.public, err)
	}
	t.seen.know(t.dev.LookupPeer(device.NoisePublicKey(p.PublicKey)), began)
	t.peers[p.PublicKey] = k
	t.allow(k, more, less)
	return nil
}

// Allow changes which addresses are behind a peer: less are there no more, more come.
// What the call costs follows from them alone, and not from how many the peer has. The
// error wraps [ErrUnknownPeer] where SetPeer has not added it.
func (t *Tunnel) Allow(peer Key, more, less []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.peers[peer]
	var err error
	switch {
	case t.closed():
		err = ErrClosed
	case k == nil:
		err = ErrUnknownPeer
	case slices.ContainsFunc(more, func(p netip.Prefix) bool { return !p.IsValid() }):
		err = errEmptyPrefix
	}
	if err == nil {
		less = slices.DeleteFunc(slices.Clone(less), func(p netip.Prefix) bool { return t.owner[p.Masked()] != k })
		err = t.dev.IpcSet(allowedConfig(peer, more, less))
	}
	if err != nil {
		return fmt.Errorf("change the allowed addresses of peer %s of the tunnel %s: %w", peer, t.public, err)
	}
	t.allow(k, more, less)
	return nil
}

// allow notes what WireGuard was told of a peer. The caller holds t.mu.
func (t *Tunnel) allow(k *known, more, less []netip.Prefix) {
	for _, prefix := range less {
		prefix = prefix.Masked()
		delete(k.allowed, prefix)
		delete(t.owner, prefix)
	}
	for _, prefix := range more {
		prefix = prefix.Masked()
		if other := t.owner[prefix]; other != nil && other != k {
			delete(other.allowed, prefix)
		}
		k.allowed[prefix], t.owner[prefix] = struct{}{}, k
	}
}

var errEmptyPrefix = errors.New("one of the allowed prefixes is empty")

// checkPeer refuses what WireGuard would silently ignore or cut.
func (t *Tunnel) checkPeer(p Peer) error {
	switch {
	case p.PublicKey.IsZero():
		return errors.New("the peer has no public key")
	case p.PublicKey == t.public:
		return errors.New("the peer has the tunnel's own key; give each end a key of its own")
	case p.Keepalive < 0 || p.Keepalive > maxKeepalive:
		return fmt.Errorf("keepalive %v is outside 0 to %v", p.Keepalive, maxKeepalive)
	}
	for _, prefix := range p.AllowedIPs {
		if !prefix.IsValid() {
			return errEmptyPrefix
		}
	}
	return nil
}

// config writes the change in WireGuard's configuration protocol.
func (p Peer) config(more, less []netip.Prefix) string {
	var b strings.Builder
	b.WriteString(allowedConfig(p.PublicKey, more, less))
	if p.Endpoint.IsValid() {
		fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
	}
	seconds := (p.Keepalive + time.Second - 1) / time.Second
	fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", seconds)
	return b.String()
}

// allowedConfig writes which allowed prefixes of a peer change.
func allowedConfig(peer Key, more, less []netip.Prefix) string {
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\n", peer.hex())
	for _, prefix := range less {
		fmt.Fprintf(&b, "allowed_ip=-%s\n", prefix)
	}
	for _, prefix := range more {
		fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
	}
	return b.String()
}

// RemovePeer takes a peer out; its packets are dropped from now on. Removing
// one that is not there is no error.
func (t *Tunnel) RemovePeer(peer Key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed() {
		return fmt.Errorf("remove peer %s of the tunnel %s: %w", peer, t.public, ErrClosed)
	}
	if p := t.dev.LookupPeer(device.NoisePublicKey(peer)); p != nil {
		t.seen.forget(p)
	}
	t.endGreeting(peer)
	t.dev.RemovePeer(device.NoisePublicKey(peer))
	if k := t.peers[peer]; k != nil {
		for prefix := range k.allowed {
			delete(t.owner, prefix)
		}
		delete(t.peers, peer)
	}
	return nil
}

// Peers reads the counters of all peers, ordered by key.
func (t *Tunnel) Peers() ([]PeerStats, error) {
	t.mu.Lock()
	closed := t.closed()
	t.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("read the peers of the tunnel %s: %w", t.public, ErrClosed)
	}
	state, err := t.read()
	if err != nil {
		return nil, err
	}
	for i := range state.peers {
		p := &state.peers[i]
		if known := t.dev.LookupPeer(device.NoisePublicKey(p.PublicKey)); known != nil {
			p.Disallowed = t.seen.disallowed(known)
		}
	}
	return state.peers, nil
}
