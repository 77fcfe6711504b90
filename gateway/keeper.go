package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

const (
	// settleTime is how long the state file waits for more changes before it is written.
	settleTime = 250 * time.Millisecond
	// sampleInterval is how often the tunnels are asked where their peers are.
	sampleInterval = 5 * time.Second
	// writeShare is how many times longer the keeper rests than a write took, so
	// that a large file does not keep the disk busy.
	writeShare = 20
)

// greetInterval is the keepalive of peers that are called: WireGuard's own advice.
// It calls again where the first handshake is lost.
const greetInterval = 25 * time.Second

// greeted adds to a peer where it was in the network's former life, of whose end it
// does not know: WireGuard calls it there at once.
func (n *network) greeted(p tunnel.Peer) tunnel.Peer {
	if at, ok := n.former[p.PublicKey]; ok && !p.Endpoint.IsValid() {
		p.Endpoint, p.Keepalive = at, greetInterval
		delete(n.former, p.PublicKey) // once
	}
	return p
}

// keeper is what the state file needs besides what the follower knows.
type keeper struct {
	dirty  chan struct{} // poked when something changed
	errors atomic.Uint64 // writes that failed, and files that were refused
	writes atomic.Uint64

	mu    sync.Mutex          // guards peers; taken for a moment only
	peers map[string]contacts // by network; values are not changed once they are in

	// The goroutine's that writes.
	last    [sha256.Size]byte // of the file as it is
	trouble string            // what the log was told last
}

func newKeeper() *keeper {
	return &keeper{dirty: make(chan struct{}, 1), peers: map[string]contacts{}}
}

// touch says that something changed.
func (k *keeper) touch() {
	select {
	case k.dirty <- struct{}{}:
	default:
	}
}

// contacts says where the peers of a network were last heard from. The map is the
// caller's.
func (k *keeper) contacts(network string) contacts {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.peers[network])
}

// note asks a network's tunnels where their peers are, and reports whether any of
// them is somewhere else than it was. Of a tunnel that ended all stays as it was.
func (k *keeper) note(n *network) bool {
	stats, err := n.tun.Peers()
	if err != nil {
		return false
	}
	k.mu.Lock()
	before := k.peers[n.id]
	k.mu.Unlock()
	now := make(contacts, len(stats))
	for _, p := range append(stats, n.siteStats()...) {
		if at := p.Endpoint; at.IsValid() {
			now[p.PublicKey] = at
		} else if at, ok := before[p.PublicKey]; ok {
			now[p.PublicKey] = at
		}
	}
	if maps.Equal(before, now) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.peers[n.id] = now
	return true
}

// siteStats is what the network's site or relay tunnel knows of its peers.
func (n *network) siteStats() []tunnel.PeerStats {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	if n.site == nil {
		return nil
	}
	return slices.Collect(maps.Values(n.sitePeers()))
}

// keep forgets the peers of networks that are not served here any more.
func (k *keeper) keep(networks map[string]uint16) map[string]contacts {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.peers, func(id string, _ contacts) bool { _, served := networks[id]; return !served })
	return maps.Clone(k.peers)
}

// sample asks all tunnels where their peers are.
func (h *Host) sample() {
	changed := false
	for _, n := range h.list() {
		changed = h.keeper.note(n) || changed
	}
	if changed {
		h.keeper.touch()
	}
}

// remember keeps the state file up to date until ctx ends, and writes it once more then.
func (h *Host) remember(ctx context.Context) error {
	if h.cfg.Daemon.StateFile == "" {
		return nil
	}
	sampling := time.NewTicker(sampleInterval)
	defer sampling.Stop()
	for {
		select {
		case <-ctx.Done():
			h.write()
			return ctx.Err()
		case <-sampling.C:
			h.sample()
			if h.keeper.trouble != "" {
				h.keeper.touch() // the disk may have room again
			}
			continue
		case <-h.keeper.dirty:
		}
		if pause(ctx, settleTime) == nil {
			began := time.Now()
			h.sample() // those who came meanwhile have called since
			h.write()
			_ = pause(ctx, writeShare*time.Since(began)) // the loop looks at ctx
		}
	}
}

// recall copies what is known.
func (h *Host) recall() memory {
	h.known.Lock()
	defer h.known.Unlock()
	m := memory{
		Region: h.cfg.Daemon.Region, Host: h.cfg.Daemon.Host, Cursor: h.at, State: h.state,
		Attachments: slices.Collect(maps.Values(h.roster.attached)),
		Orphans:     slices.Sorted(maps.Keys(h.roster.orphans)),
		Ports:       maps.Clone(h.ports),
	}
	m.Peers = h.keeper.keep(h.ports)
	return m
}

// write writes the state file, unless it would be the same again.
func (h *Host) write() {
	m := h.recall()
	slices.SortFunc(m.Attachments, func(a, b spec.Attachment) int { return strings.Compare(a.ID, b.ID) })
	b, err := m.encode()
	sum := sha256.Sum256(b)
	if err == nil && sum == h.keeper.last {
		return
	}
	if err == nil {
		err = writeStateFile(h.cfg.Daemon.StateFile, b)
	}
	if err == nil {
		h.keeper.writes.Add(1)
		h.keeper.last, h.keeper.trouble = sum, ""
		return
	}
	h.keeper.errors.Add(1)
	if text := err.Error(); text != h.keeper.trouble {
		h.keeper.trouble = text
		h.cfg.Log.Error("state file not written; after a restart the gateway would know what the last one says. Going on, and trying again",
			"file", h.cfg.Daemon.StateFile, "error", err)
	}
}

// restore takes the host up where the state file left it. False: there is none
// that is good, and nothing was done.
func (h *Host) restore() bool {
	path := h.cfg.Daemon.StateFile
	if path == "" {
		return false
	}
	b, err := readStateFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	var m memory
	if err == nil {
		m, err = decodeMemory(b)
	}
	if err == nil {
		err = m.belongs(h.cfg.Daemon.Region, h.cfg.Daemon.Host)
	}
	if err != nil {
		h.keeper.errors.Add(1)
		h.cfg.Log.Error("state file refused; starting without what it knew, as at a first start", "file", path, "error", err)
		return false
	}
	h.cfg.Log.Info("starting with the state file", "file", path, "revision", m.Cursor.Revision,
		"attachments", len(m.Attachments), "networks", len(m.Ports))
	h.resume(m)
	return true
}

// resume brings up what a former life of the host knew.
func (h *Host) resume(m memory) {
	r := portRange(h.cfg.Daemon.WireGuard.Ports)
	taken := map[uint16]bool{}
	for _, id := range slices.Sorted(maps.Keys(m.Ports)) {
		if p := m.Ports[id]; p >= r.First && p <= r.Last && !taken[p] {
			h.ports[id], taken[p] = p, true
		}
	}
	maps.Copy(h.keeper.peers, m.Peers)
	h.settle(m.Cursor.Revision, func() error {
		return h.apply(spec.Update{
			Store: m.Cursor.Store, Revision: m.Cursor.Revision, Full: true, State: &m.State, Attached: m.Attachments,
		})
	})
	h.known.Lock()
	defer h.known.Unlock()
	for _, id := range m.Orphans {
		if a, ok := h.roster.attached[id]; ok {
			h.roster.orphan(a)
		}
	}
	h.roster.hold(time.Now())
}
