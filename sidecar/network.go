package sidecar

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

// keepalive is the interval of WireGuard's own empty packets. Probes are more
// frequent; it is there so that a handshake is tried even when the gateway is away.
const keepalive = 25 * time.Second

// The MTUs that a network may have, in bytes: from what every host must take
// (RFC 791) to what a tunnel through an Ethernet with jumbo frames carries.
const (
	minMTU = 576
	maxMTU = 9000
)

// maxNameServers is how many name servers programs look at (resolv.conf(5)).
const maxNameServers = 3

// network is a network in which this worker has sandboxes. Its fields are
// guarded by the sidecar's lock, but for info and pool, which never change.
type network struct {
	info      api.AttachedNetwork // as the first attachment had it
	pool      *bufferPool         // of packets of its MTU
	worker    netip.Addr          // the worker's own address
	sandboxes *directory
	links     map[string]*link // by gateway host
	attached  int              // attachments that use it
}

// link is the tunnel to one gateway host of a network. Its fields are guarded by
// the sidecar's lock.
type link struct {
	gateway  spec.Gateway
	path     *path
	tunnel   *tunnel.Tunnel
	attached int       // attachments that use it
	received uint64    // bytes when last looked
	heard    time.Time // when they last had grown
	greeted  uint64    // the comparison in which it was greeted last
}

// neverGreeted is no comparison's number.
const neverGreeted = math.MaxUint64

// join finds or makes the network and the link of an attachment and counts it
// in. The caller holds the lock.
func (s *Sidecar) join(resp api.AttachResponse) (*network, *link, error) {
	if len(resp.Gateways) == 0 {
		return nil, nil, errors.New("the control plane named no gateway")
	}
	if err := checkNetwork(resp.Network); err != nil {
		return nil, nil, fmt.Errorf("what the control plane says of network %s cannot be: %w", resp.Network.ID, err)
	}
	a := resp.Attachment
	n := s.networks[a.Network]
	if n == nil {
		n = &network{info: resp.Network, pool: newBufferPool(resp.Network.MTU), sandboxes: newDirectory(), links: make(map[string]*link)}
	}
	l, err := s.connect(n, resp)
	if err != nil {
		return nil, nil, err
	}
	s.networks[a.Network] = n
	n.attached++
	l.attached++
	return n, l, nil
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

// connect finds or makes the link to the gateway in use, and brings it and the
// worker's address up to date. The caller holds the lock.
func (s *Sidecar) connect(n *network, resp api.AttachResponse) (*link, error) {
	gw, worker := resp.Gateways[0], resp.Attachment.Worker
	if !worker.Is4() || !resp.Network.Gateway.Is4() {
		return nil, fmt.Errorf("network %s: the worker's address %v or the gateway's %v is not an IPv4 address", resp.Network.ID, worker, resp.Network.Gateway)
	}
	peer, err := tunnel.ParseKey(gw.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("gateway host %s of network %s: %w", gw.Host, gw.Network, err)
	}
	if n.worker != worker {
		n.worker = worker
		for _, l := range n.links {
			l.path.setWorker(worker)
		}
	}
	l := n.links[gw.Host]
	greeted := s.round // a new peer is greeted by its keepalive
	switch {
	case l == nil:
		if l, err = s.newLink(n, gw); err != nil {
			return nil, err
		}
	case l.gateway.PublicKey != gw.PublicKey:
		if old, err := tunnel.ParseKey(l.gateway.PublicKey); err == nil {
			if err := l.tunnel.RemovePeer(old); err != nil {
				return nil, err
			}
		}
	case l.gateway.Endpoint != gw.Endpoint:
		greeted = neverGreeted
	default:
		return l, nil
	}
	err = l.tunnel.SetPeer(tunnel.Peer{
		PublicKey: peer, AllowedIPs: []netip.Prefix{everything()}, Endpoint: gw.Endpoint, Keepalive: keepalive,
	})
	if err != nil {
		if l.attached == 0 {
			l.tunnel.Close()
		}
		return nil, err
	}
	l.gateway, l.greeted = gw, greeted
	n.links[gw.Host] = l
	return l, nil
}

func everything() netip.Prefix { return netip.PrefixFrom(netip.IPv4Unspecified(), 0) }

// newLink makes a tunnel without a peer.
func (s *Sidecar) newLink(n *network, gw spec.Gateway) (*link, error) {
	p := newPath(pathConfig{
		gateway: n.info.Gateway, mtu: n.info.MTU, sandboxes: n.sandboxes, pool: n.pool, clock: s.clock, count: &s.count,
	}, n.worker)
	t, err := tunnel.New(tunnel.Config{
		PrivateKey: s.key, Device: p, Log: s.cfg.Log.With("network", n.info.ID, "gateway", gw.Host),
	})
	if err != nil {
		return nil, fmt.Errorf("gateway host %s of network %s: %w", gw.Host, gw.Network, err)
	}
	return &link{path: p, tunnel: t, heard: time.Now()}, nil
}

// part counts an attachment out of its network and link, and returns the tunnel
// to close if it was the last. The caller holds the lock, and closes without it.
func (s *Sidecar) part(e *entry) *tunnel.Tunnel {
	n, l := e.network, e.link
	if n.attached--; n.attached == 0 {
		delete(s.networks, n.info.ID)
	}
	if l.attached--; l.attached > 0 {
		return nil
	}
	delete(n.links, l.gateway.Host)
	return l.tunnel
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

// greet shakes hands with the gateway anew. A gateway ignores a second greeting
// within 20 ms, and the first is void then. The caller holds the lock.
func (l *link) greet() error {
	peer, err := tunnel.ParseKey(l.gateway.PublicKey)
	if err != nil {
		return err
	}
	return l.tunnel.Rehandshake(peer)
}
