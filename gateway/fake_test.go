package gateway

import (
	"bytes"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

var (
	network16 = netip.MustParsePrefix("10.20.0.0/16")
	gw        = netip.MustParseAddr("10.20.0.1")
	alice     = netip.MustParseAddr("10.20.0.2") // leaves from pair[1]: odd number of bits
	bob       = netip.MustParseAddr("10.20.0.3")
	worker    = netip.MustParseAddr("10.20.0.9")
	stranger  = netip.MustParseAddr("10.20.7.7")
	pair      = [2]netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.11")}
	neighbour = netip.MustParseAddr("203.0.113.12") // of another network's pair
	origin    = netip.MustParseAddrPort("192.0.2.80:443")
	forbidden = netip.MustParseAddrPort("192.0.2.66:443")
	resolver  = netip.MustParseAddrPort("192.0.2.53:53")
)

const headroom = 16 // wireguard-go's offset

// manualClock stands still until it is moved.
type manualClock struct {
	mu  sync.Mutex
	now packet.Instant
}

func (c *manualClock) Now() packet.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// fakeUplink keeps what is written and returns what the test queues. A Read that
// would wait returns as after Close, so that tests never block.
type fakeUplink struct {
	uplink.Uplink
	sent  [][]byte
	queue [][]byte
	wakes atomic.Int32
	woken atomic.Bool
	done  bool

	released []uplink.Flow
}

func (u *fakeUplink) Write(bufs [][]byte, offset int) (int, error) {
	if u.done {
		return 0, os.ErrClosed
	}
	for _, b := range bufs {
		u.sent = append(u.sent, append([]byte(nil), b[offset:]...))
	}
	return len(bufs), nil
}

func (u *fakeUplink) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if u.done || len(u.queue) == 0 && !u.woken.Load() {
		return 0, os.ErrClosed
	}
	u.woken.Store(false)
	n := 0
	for n < len(bufs) && n < len(u.queue) {
		sizes[n] = copy(bufs[n][offset:], u.queue[n])
		n++
	}
	u.queue = u.queue[n:]
	return n, nil
}

func (u *fakeUplink) Release(f uplink.Flow) { u.released = append(u.released, f) }

// Wake is called by whoever sends, others among them.
func (u *fakeUplink) Wake() {
	u.wakes.Add(1)
	u.woken.Store(true)
}

func (u *fakeUplink) Close() error { u.done = true; return nil }

// fakeLocal keeps what the local services are given.
type fakeLocal struct{ got [][]byte }

func (l *fakeLocal) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		l.got = append(l.got, append([]byte(nil), b[offset:]...))
	}
	return len(bufs), nil
}

// rig is a Forwarder between fakes.
type rig struct {
	t     testing.TB
	f     *Forwarder
	up    *fakeUplink
	local *fakeLocal
	clock *manualClock
	bufs  [][]byte // of read
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigOf(t, nat.Config{MaxSessions: 1 << 16})
}

// newRigOf is newRig with tables of another making.
func newRigOf(t testing.TB, c nat.Config) *rig {
	t.Helper()
	up := &fakeUplink{}
	return newRigOn(t, c, up, up)
}

// newRigOn is newRigOf on an uplink that is made of a fake one.
func newRigOn(t testing.TB, c nat.Config, on uplink.Uplink, fake *fakeUplink) *rig {
	t.Helper()
	r := &rig{t: t, up: fake, local: &fakeLocal{}, clock: &manualClock{now: 1e9}}
	snapshot, err := policy.Compile(policy.Config{
		Network: network16, Gateway: gw, Own: []netip.Addr{neighbour}, Pair: pair[:], Mode: policy.ModeAllow,
		Rules: []policy.Rule{{CIDRs: []netip.Prefix{netip.PrefixFrom(forbidden.Addr(), 32)}, Verdict: policy.RuleReject}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{alice, bob} {
		snapshot = snapshot.With(a, policy.Subject{Project: "prj", Environment: "production", Kind: "function", Runtime: "go"})
	}
	snapshot = snapshot.With(worker, policy.Subject{Kind: workerKind})
	var tables [2]*nat.Table
	for i, ip := range pair {
		c.External, c.Seed = ip, [32]byte{byte(i + 1)}
		if tables[i], err = nat.New(c); err != nil {
			t.Fatal(err)
		}
	}
	r.f, err = NewForwarder(ForwarderConfig{
		Name: "test", Network: network16, Gateway: gw, Tables: tables, External: pair, Uplink: on, Local: r.local,
		Policy: snapshot, Resolvers: []netip.AddrPort{resolver}, MTU: 1420, Clock: r.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.f.SetPolicy(snapshot, map[netip.Addr]struct{}{worker: {}})
	return r
}

// frame puts a packet where wireguard-go would: behind the headroom.
func frame(b []byte) []byte { return append(make([]byte, headroom), b...) }

func udp(t testing.TB, src, dst netip.AddrPort, payload []byte) []byte {
	t.Helper()
	b := make([]byte, 28+len(payload))
	return b[:packet.BuildUDP(b, src, dst, payload, 64, 7)]
}

func tcp(t testing.TB, h packet.TCPHeader) []byte {
	t.Helper()
	b := make([]byte, 128)
	n := packet.BuildTCP(b, h, nil)
	if n == 0 {
		t.Fatal("no TCP segment built")
	}
	return b[:n]
}

// write is one peer's batch.
func (r *rig) write(packets ...[]byte) {
	r.t.Helper()
	var bufs [][]byte
	for _, p := range packets {
		bufs = append(bufs, frame(p))
	}
	if n, err := r.f.Write(bufs, headroom); n != len(bufs) || err != nil {
		r.t.Fatalf("Write = %d, %v; want %d", n, err, len(bufs))
	}
}

// read returns the packets of one Read, parsed; those of size 0 are left out.
func (r *rig) read() []packet.Packet {
	r.t.Helper()
	if r.bufs == nil {
		r.bufs = readBuffers()
	}
	bufs, sizes := r.bufs, make([]int, batchSize)
	n, err := r.f.Read(bufs, sizes, headroom)
	if err == os.ErrClosed {
		return nil
	}
	if err != nil {
		r.t.Fatal(err)
	}
	var got []packet.Packet
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		got = append(got, parsed(r.t, bytes.Clone(bufs[i][headroom:headroom+sizes[i]])))
	}
	return got
}

// readBuffers are as wireguard-go's.
func readBuffers() [][]byte {
	bufs := make([][]byte, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, headroom+65535)
	}
	return bufs
}

func parsed(t testing.TB, b []byte) packet.Packet {
	t.Helper()
	var p packet.Packet
	if o := packet.Parse(&p, b); o != packet.Pass {
		t.Fatalf("packet does not parse: %v", o)
	}
	return p
}

// counts are all counters of a Forwarder that are not 0.
func (r *rig) counts() map[string]uint64 {
	c, got := &r.f.counters, map[string]uint64{}
	put := func(k string, v uint64) {
		if v != 0 {
			got[k] = v
		}
	}
	for _, d := range []Direction{Egress, Ingress} {
		put(d.String(), c.Packets(d))
		for o := range packet.Outcomes() {
			put(d.String()+" "+o.String(), c.Drops(d, o))
		}
	}
	put("local", c.Local())
	put("replies", c.Replies())
	return got
}
