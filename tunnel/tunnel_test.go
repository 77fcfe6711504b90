package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun"
)

// memTUN is a packet device made of two channels.
type memTUN struct {
	out    chan []byte // what the tunnel reads
	in     chan []byte // what the tunnel wrote
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
}

func newMemTUN() *memTUN {
	d := &memTUN{
		out: make(chan []byte, 256), in: make(chan []byte, 1024),
		events: make(chan tun.Event, 4), closed: make(chan struct{}),
	}
	d.events <- tun.EventUp // as the kernel's devices do, at once
	return d
}

func (d *memTUN) File() *os.File           { return nil }
func (d *memTUN) MTU() (int, error)        { return 1420, nil }
func (d *memTUN) Name() (string, error)    { return "mem", nil }
func (d *memTUN) Events() <-chan tun.Event { return d.events }
func (d *memTUN) BatchSize() int           { return 16 }

func (d *memTUN) Close() error {
	d.once.Do(func() { close(d.closed); close(d.events) })
	return nil
}

func (d *memTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case b := <-d.out:
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	}
}

func (d *memTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case d.in <- bytes.Clone(b[offset:]):
		case <-d.closed:
			return 0, os.ErrClosed
		}
	}
	return len(bufs), nil
}

func (d *memTUN) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// packetFrom is a small IPv4 packet; WireGuard looks at version, length and addresses only.
func packetFrom(src, dst string, mark byte) []byte {
	b := make([]byte, 24)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	b[20] = mark
	return b
}

// end is one end of a pair of tunnels.
type end struct {
	*Tunnel
	dev *memTUN
}

func newEnd(t *testing.T) end {
	t.Helper()
	dev := newMemTUN()
	tn, err := New(Config{PrivateKey: NewKey(), Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tn.Close)
	return end{tn, dev}
}

func (e end) endpoint() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.ListenPort())
}

// expect waits for a packet with the given mark and returns it.
func (e end) expect(t *testing.T, mark byte) []byte {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case b := <-e.dev.in:
			if b[20] == mark {
				return b
			}
		case <-deadline:
			t.Fatalf("packet %d did not arrive within 10 s", mark)
		}
	}
}

func prefixes(text ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(text))
	for i, p := range text {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

// connect joins a gateway and a worker with one sandbox address.
func connect(t *testing.T, gateway, worker end, inner ...string) {
	t.Helper()
	if err := gateway.SetPeer(Peer{PublicKey: worker.PublicKey(), AllowedIPs: prefixes(inner...)}); err != nil {
		t.Fatal(err)
	}
	if err := worker.SetPeer(Peer{
		PublicKey: gateway.PublicKey(), AllowedIPs: prefixes("0.0.0.0/0"),
		Endpoint: gateway.endpoint(), Keepalive: 10 * time.Second,
	}); err != nil {
		t.Fatal(err)
	}
}

func TestPacketsBothWays(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("pair", func(t *testing.T) {
		gateway, worker := newEnd(t), newEnd(t)
		connect(t, gateway, worker, "10.0.0.5/32")

		out := packetFrom("10.0.0.5", "192.0.2.1", 1)
		worker.dev.out <- out
		if got := gateway.expect(t, 1); !bytes.Equal(got, out) {
			t.Errorf("gateway got %x, want %x", got, out)
		}
		back := packetFrom("192.0.2.1", "10.0.0.5", 2)
		gateway.dev.out <- back
		if got := worker.expect(t, 2); !bytes.Equal(got, back) {
			t.Errorf("worker got %x, want %x", got, back)
		}

		peers, err := gateway.Peers()
		if err != nil || len(peers) != 1 {
			t.Fatalf("Peers() = %v, %v; want one", peers, err)
		}
		p := peers[0]
		if p.PublicKey != worker.PublicKey() || p.Endpoint != worker.endpoint() ||
			!slices.Equal(p.AllowedIPs, prefixes("10.0.0.5/32")) {
			t.Errorf("peer %+v, want key, learnt endpoint %v and 10.0.0.5/32", p, worker.endpoint())
		}
		if p.RxBytes == 0 || p.TxBytes == 0 || time.Since(p.LastHandshake) > time.Minute {
			t.Errorf("counters %+v, want bytes both ways and a recent handshake", p)
		}
		if peers, _ = worker.Peers(); peers[0].Keepalive != 10*time.Second {
			t.Errorf("keepalive %v, want 10s", peers[0].Keepalive)
		}
	})
}

// a source outside the peer's allowed addresses does not come out, and the next
// good packet does.
func TestForeignSourceIsDropped(t *testing.T) {
	gateway, worker := newEnd(t), newEnd(t)
	connect(t, gateway, worker, "10.0.0.5/32")
	worker.dev.out <- packetFrom("10.0.0.6", "192.0.2.1", 1)
	worker.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 2)
	deadline := time.After(10 * time.Second)
	select {
	case b := <-gateway.dev.in:
		if b[20] != 2 {
			t.Errorf("packet %d came out first; its source is not allowed", b[20])
		}
	case <-deadline:
		t.Fatal("nothing arrived within 10 s")
	}
}

// An address moves to the peer that was set last, and only that one.
func TestAllowedAddressMoves(t *testing.T) {
	gateway, first, second := newEnd(t), newEnd(t), newEnd(t)
	connect(t, gateway, first, "10.0.0.5/32", "10.0.0.6/32")
	connect(t, gateway, second, "10.0.0.5/32")

	want := map[Key][]netip.Prefix{
		first.PublicKey():  prefixes("10.0.0.6/32"),
		second.PublicKey(): prefixes("10.0.0.5/32"),
	}
	checkPeers(t, gateway, want)

	first.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 1) // no longer its own
	first.dev.out <- packetFrom("10.0.0.6", "192.0.2.1", 2)
	gateway.expect(t, 2)
	second.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 3)
	gateway.expect(t, 3)

	// The loser gives up what it still has; the winner's stays.
	if err := gateway.SetPeer(Peer{PublicKey: first.PublicKey(), AllowedIPs: prefixes("10.0.0.7/32")}); err != nil {
		t.Fatal(err)
	}
	want[first.PublicKey()] = prefixes("10.0.0.7/32")
	checkPeers(t, gateway, want)

	if err := gateway.RemovePeer(second.PublicKey()); err != nil {
		t.Fatal(err)
	}
	delete(want, second.PublicKey())
	checkPeers(t, gateway, want)

	// What a removed peer had is free again.
	connect(t, gateway, first, "10.0.0.5/32", "10.0.0.7/32")
	want[first.PublicKey()] = prefixes("10.0.0.5/32", "10.0.0.7/32")
	checkPeers(t, gateway, want)
}

// A tunnel that only calls has a socket of the kind that its peer's endpoint is of, and
// another one once the peer is elsewhere.
func TestCallsOpensWhatItNeeds(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("pair", func(t *testing.T) {
		gateway := newEnd(t)
		dev := newMemTUN()
		tn, err := New(Config{PrivateKey: NewKey(), Device: dev, Calls: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tn.Close)
		worker := end{tn, dev}
		open := func(v4, v6 bool) {
			t.Helper()
			tn.bind.mu.RLock()
			defer tn.bind.mu.RUnlock()
			if tn.bind.v4 != nil != v4 || tn.bind.v6 != nil != v6 {
				t.Errorf("sockets %v and %v, want IPv4: %v, IPv6: %v", tn.bind.v4, tn.bind.v6, v4, v6)
			}
		}
		open(false, false)
		connect(t, gateway, worker, "10.0.0.5/32")
		worker.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 1)
		gateway.expect(t, 1)
		gateway.dev.out <- packetFrom("192.0.2.1", "10.0.0.5", 2)
		worker.expect(t, 2)
		open(true, false)
		if c, err := net.ListenPacket("udp6", "[::1]:0"); err != nil {
			t.Skipf("NOT RUN: this machine has no IPv6: %v", err)
		} else {
			_ = c.Close()
		}
		if err := worker.SetPeer(Peer{
			PublicKey: gateway.PublicKey(), AllowedIPs: prefixes("0.0.0.0/0"), Keepalive: 10 * time.Second,
			Endpoint: netip.AddrPortFrom(netip.IPv6Loopback(), gateway.ListenPort()),
		}); err != nil {
			t.Fatal(err)
		}
		open(true, true)
		worker.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 3)
		gateway.expect(t, 3)
		gateway.dev.out <- packetFrom("192.0.2.1", "10.0.0.5", 4)
		worker.expect(t, 4)
	})
}

// Allow changes what is said and nothing else, takes addresses from others as SetPeer
// does, and removes none that is another's by now.
func TestAllowChangesOnly(t *testing.T) {
	gateway, first, second := newEnd(t), newEnd(t), newEnd(t)
	connect(t, gateway, first, "10.0.0.5/32", "10.0.0.6/32")
	connect(t, gateway, second)
	first.dev.out <- packetFrom("10.0.0.6", "192.0.2.1", 1)
	gateway.expect(t, 1)
	allow := func(e end, more, less []netip.Prefix) {
		t.Helper()
		if err := gateway.Allow(e.PublicKey(), more, less); err != nil {
			t.Fatal(err)
		}
	}
	allow(first, prefixes("10.0.0.7/32"), prefixes("10.0.0.5/32", "10.0.0.99/32"))
	allow(second, prefixes("10.0.0.5/32", "10.0.0.7/32"), nil)
	want := map[Key][]netip.Prefix{
		first.PublicKey():  prefixes("10.0.0.6/32"),
		second.PublicKey(): prefixes("10.0.0.5/32", "10.0.0.7/32"),
	}
	checkPeers(t, gateway, want)
	allow(first, nil, prefixes("10.0.0.7/32")) // the other's
	checkPeers(t, gateway, want)
	first.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 2) // no longer its own
	first.dev.out <- packetFrom("10.0.0.6", "192.0.2.1", 3)
	gateway.expect(t, 3)

	// What SetPeer sets afterwards is exact.
	connect(t, gateway, second, "10.0.0.8/32")
	want[second.PublicKey()] = prefixes("10.0.0.8/32")
	checkPeers(t, gateway, want)

	if err := gateway.Allow(NewKey().Public(), prefixes("10.0.0.9/32"), nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("a peer that is not there: %v", err)
	}
	if err := gateway.Allow(first.PublicKey(), []netip.Prefix{{}}, nil); err == nil {
		t.Error("an empty prefix was allowed")
	}
	checkPeers(t, gateway, want)
	gateway.Close()
	if err := gateway.Allow(first.PublicKey(), nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a tunnel that is closed: %v", err)
	}
}

func checkPeers(t *testing.T, e end, want map[Key][]netip.Prefix) {
	t.Helper()
	peers, err := e.Peers()
	if err != nil {
		t.Fatal(err)
	}
	if len(peers) != len(want) {
		t.Errorf("%d peers, want %d", len(peers), len(want))
	}
	for _, p := range peers {
		if !slices.Equal(p.AllowedIPs, want[p.PublicKey]) {
			t.Errorf("peer %s allows %v, want %v", p.PublicKey, p.AllowedIPs, want[p.PublicKey])
		}
	}
}

func TestRemovedPeerIsCut(t *testing.T) {
	gateway, worker := newEnd(t), newEnd(t)
	connect(t, gateway, worker, "10.0.0.5/32")
	worker.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 1)
	gateway.expect(t, 1)
	if err := gateway.RemovePeer(worker.PublicKey()); err != nil {
		t.Fatal(err)
	}
	if err := gateway.RemovePeer(worker.PublicKey()); err != nil {
		t.Errorf("second removal: %v", err)
	}
	worker.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 2)
	// Packets of one tunnel stay in order: when the second way's packet has
	// passed, the first would have.
	other := newEnd(t)
	connect(t, gateway, other, "10.0.0.6/32")
	other.dev.out <- packetFrom("10.0.0.6", "192.0.2.1", 3)
	deadline := time.After(10 * time.Second)
	select {
	case b := <-gateway.dev.in:
		if b[20] != 3 {
			t.Errorf("packet %d of a removed peer came out", b[20])
		}
	case <-deadline:
		t.Fatal("nothing arrived within 10 s")
	}
}

// A peer that lost its session is reached at once after Rehandshake.
func TestRehandshakeAfterRestart(t *testing.T) {
	worker := newEnd(t)
	key, dev := NewKey(), newMemTUN()
	old, err := New(Config{PrivateKey: key, Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, end{old, dev}, worker, "10.0.0.5/32")
	worker.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 1)
	end{old, dev}.expect(t, 1)
	port := old.ListenPort()
	old.Close()

	dev = newMemTUN()
	tn, err := New(Config{PrivateKey: key, ListenPort: port, Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tn.Close)
	again := end{tn, dev}
	if err := again.SetPeer(Peer{PublicKey: worker.PublicKey(), AllowedIPs: prefixes("10.0.0.5/32")}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := worker.Rehandshake(again.PublicKey()); err != nil {
		t.Fatal(err)
	}
	worker.dev.out <- packetFrom("10.0.0.5", "192.0.2.1", 2)
	again.expect(t, 2)
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("took %v: WireGuard's own retry did it", took)
	}
}

func TestPortInUse(t *testing.T) {
	defer goleak.VerifyNone(t)
	holder, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	dev := newMemTUN()
	_, err = New(Config{PrivateKey: NewKey(), ListenPort: uint16(holder.LocalAddr().(*net.UDPAddr).Port), Device: dev})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("error %v, want one that wraps EADDRINUSE", err)
	}
	for _, part := range []string{"listen on UDP port", "address already in use", "choose another port"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if !dev.isClosed() {
		t.Error("the device is still open")
	}
}

func TestRefusals(t *testing.T) {
	if _, err := New(Config{PrivateKey: NewKey()}); err == nil {
		t.Error("no device: no error")
	}
	dev := newMemTUN()
	if _, err := New(Config{Device: dev}); err == nil || !dev.isClosed() {
		t.Errorf("no key: error %v, device closed %v; want an error and a closed device", err, dev.isClosed())
	}
	e := newEnd(t)
	for name, p := range map[string]Peer{
		"no key":        {},
		"own key":       {PublicKey: e.PublicKey()},
		"long interval": {PublicKey: NewKey().Public(), Keepalive: 24 * time.Hour},
		"empty prefix":  {PublicKey: NewKey().Public(), AllowedIPs: make([]netip.Prefix, 1)},
	} {
		if err := e.SetPeer(p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	checkPeers(t, e, nil)
	if err := e.Rehandshake(NewKey().Public()); err == nil {
		t.Error("handshake with a stranger: no error")
	}
}

func TestClosedTunnelSaysSo(t *testing.T) {
	e := newEnd(t)
	e.Close()
	e.Close()
	<-e.Done()
	if !e.dev.isClosed() {
		t.Error("the device is still open")
	}
	_, err := e.Peers()
	for name, err := range map[string]error{
		"Peers": err, "SetPeer": e.SetPeer(Peer{PublicKey: NewKey().Public()}),
		"RemovePeer": e.RemovePeer(NewKey()), "Rehandshake": e.Rehandshake(NewKey()),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

// A device that ends by itself ends the tunnel.
func TestDeviceEnds(t *testing.T) {
	e := newEnd(t)
	_ = e.dev.Close()
	select {
	case <-e.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the tunnel did not end within 10 s")
	}
	if err := e.SetPeer(Peer{PublicKey: NewKey().Public()}); !errors.Is(err, ErrClosed) {
		t.Errorf("SetPeer: %v, want ErrClosed", err)
	}
}

func TestLogShowsNoPrivateKey(t *testing.T) {
	var text bytes.Buffer
	var mu sync.Mutex
	log := slog.New(slog.NewTextHandler(lockedWriter{&mu, &text}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	key := NewKey()
	tn, err := New(Config{PrivateKey: key, Device: newMemTUN(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("a key as an attribute", "key", key)
	tn.Close()
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(text.String(), "level=DEBUG") {
		t.Error("WireGuard's messages do not reach the log")
	}
	for _, form := range []string{key.String(), key.hex()} {
		if strings.Contains(text.String(), form) {
			t.Error("the log shows the private key")
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (w lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(b)
}

// stats returns what a tunnel knows of a peer.
func (e end) stats(t *testing.T, peer Key) PeerStats {
	t.Helper()
	all, err := e.Peers()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.PublicKey == peer {
			return p
		}
	}
	t.Fatalf("there is no peer %s", peer)
	return PeerStats{}
}

// TestDisallowedSources: packets from outside a peer's addresses are dropped, and
// counted for that peer alone; a change of the peer keeps the count, its removal
// ends it. Whether anything is logged makes no difference.
func TestDisallowedSources(t *testing.T) {
	for name, log := range map[string]*slog.Logger{
		"no log":    nil,
		"info log":  slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelInfo})),
		"debug log": slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug})),
	} {
		t.Run(name, func(t *testing.T) {
			dev := newMemTUN()
			tn, err := New(Config{PrivateKey: NewKey(), Device: dev, Log: log})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(tn.Close)
			gateway, a, b := end{tn, dev}, newEnd(t), newEnd(t)
			connect(t, gateway, a, "10.0.0.5/32")
			connect(t, gateway, b, "10.0.0.6/32")
			send := func(from end, src string, mark byte) { from.dev.out <- packetFrom(src, "10.0.0.1", mark) }
			// Packets of one peer stay in order: when the last one is there, the others
			// have been judged.
			send(a, "10.0.0.6", 1)
			send(a, "192.0.2.1", 1)
			send(a, "10.0.0.5", 2)
			gateway.expect(t, 2)
			send(b, "10.0.0.5", 1)
			send(b, "10.0.0.6", 3)
			gateway.expect(t, 3)
			if n, m := gateway.stats(t, a.PublicKey()).Disallowed, gateway.stats(t, b.PublicKey()).Disallowed; n != 2 || m != 1 {
				t.Errorf("%d and %d packets were counted, want 2 and 1", n, m)
			}
			if err := gateway.SetPeer(Peer{PublicKey: a.PublicKey(), AllowedIPs: prefixes("10.0.0.7/32")}); err != nil {
				t.Fatal(err)
			}
			send(a, "10.0.0.5", 1)
			send(a, "10.0.0.7", 4)
			gateway.expect(t, 4)
			if n := gateway.stats(t, a.PublicKey()).Disallowed; n != 3 {
				t.Errorf("%d packets were counted after a change of the peer, want 3", n)
			}
			if err := gateway.RemovePeer(a.PublicKey()); err != nil {
				t.Fatal(err)
			}
			n := 0
			gateway.seen.peers.Range(func(any, any) bool { n++; return true })
			if n != 1 {
				t.Errorf("%d peers are counted for, want the one that is left", n)
			}
			select {
			case got := <-gateway.dev.in:
				t.Errorf("a packet got through: %x", got)
			default:
			}
		})
	}
}
