package gateway

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

// echoUplink answers each UDP datagram that leaves, blocks Read as a real uplink
// does, and checks that nothing leaves from outside the pair. Answers that find no
// room are lost.
type echoUplink struct {
	uplink.Uplink
	mu     sync.Mutex
	cond   sync.Cond
	queue  [][]byte
	sent   uint64
	wrong  int
	woken  bool
	closed bool

	reading bool // what was read last is not taken in yet
}

func newEchoUplink() *echoUplink {
	u := &echoUplink{}
	u.cond.L = &u.mu
	return u
}

func (u *echoUplink) Write(bufs [][]byte, offset int) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, b := range bufs {
		var p packet.Packet
		if packet.Parse(&p, b[offset:]) != packet.Pass || p.Src != pair[0] && p.Src != pair[1] {
			u.wrong++
			continue
		}
		u.sent++
		if len(u.queue) < 4096 {
			answer := make([]byte, 28)
			packet.BuildUDP(answer, at(p.Dst, p.DstPort), at(p.Src, p.SrcPort), nil, 64, 9)
			u.queue = append(u.queue, answer)
		}
	}
	u.cond.Broadcast()
	return len(bufs), nil
}

func (u *echoUplink) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reading = false
	u.cond.Broadcast()
	for len(u.queue) == 0 && !u.woken && !u.closed {
		u.cond.Wait()
	}
	if u.closed {
		return 0, os.ErrClosed
	}
	u.woken = false
	n := 0
	for n < len(bufs) && n < len(u.queue) {
		sizes[n] = copy(bufs[n][offset:], u.queue[n])
		n++
	}
	u.queue = u.queue[n:]
	u.reading = n > 0
	return n, nil
}

// drained waits until everything was read, and what was read last was taken in,
// as the next Read tells.
func (u *echoUplink) drained() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(u.queue) > 0 || u.reading {
		u.cond.Wait()
	}
}

func (u *echoUplink) Wake() {
	u.mu.Lock()
	u.woken = true
	u.cond.Broadcast()
	u.mu.Unlock()
}

func (u *echoUplink) Close() error {
	u.mu.Lock()
	u.closed = true
	u.cond.Broadcast()
	u.mu.Unlock()
	return nil
}

// lockedLocal counts what the local services are given.
type lockedLocal struct {
	mu sync.Mutex
	n  uint64
}

func (l *lockedLocal) Write(bufs [][]byte, _ int) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n += uint64(len(bufs))
	return len(bufs), nil
}

// movingClock moves on with each reading.
type movingClock struct{ manualClock }

func (c *movingClock) Now() packet.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += 1e5
	return c.now
}

// reader reads until the Forwarder is closed and counts what comes for each address.
type reader struct {
	f    *Forwarder
	mu   sync.Mutex
	got  map[netip.Addr]uint64
	err  error
	came chan struct{} // something came since it was looked at last
	done chan struct{}
}

func startReader(f *Forwarder) *reader {
	r := &reader{f: f, got: map[netip.Addr]uint64{}, came: make(chan struct{}, 1), done: make(chan struct{})}
	go r.run()
	return r
}

func (r *reader) run() {
	defer close(r.done)
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, headroom+2048)
	}
	for {
		n, err := r.f.Read(bufs, sizes, headroom)
		if err != nil {
			r.err = err
			return
		}
		r.mu.Lock()
		for i := range n {
			if sizes[i] >= 20 {
				r.got[netip.AddrFrom4([4]byte(bufs[i][headroom+16:]))]++
			}
		}
		r.mu.Unlock()
		select {
		case r.came <- struct{}{}:
		default:
		}
	}
}

// total is how many packets came.
func (r *reader) total() (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.got {
		n += k
	}
	return n
}

// crowd is a Forwarder with four sandboxes between live fakes.
type crowd struct {
	*rig
	echo      *echoUplink
	services  *lockedLocal
	sandboxes []netip.Addr
	attached  *policy.Snapshot
}

func newCrowd(t *testing.T) *crowd {
	r := newRig(t)
	c := &crowd{rig: r, echo: newEchoUplink(), services: &lockedLocal{}}
	r.f.uplink, r.f.local, r.f.clock = c.echo, c.services, &movingClock{manualClock{now: 1e9}}
	s, workers := r.f.Policy()
	for i := range 4 {
		a := netip.AddrFrom4([4]byte{10, 20, 1, byte(i)})
		c.sandboxes = append(c.sandboxes, a)
		s = s.With(a, policy.Subject{Project: "prj", Kind: "function"})
	}
	c.attached = s
	r.f.SetPolicy(s, workers)
	return c
}

// TestConcurrent: one writer per peer, one reader, services that answer, a policy
// that changes and sandboxes that are revoked, all at once. Every packet counts
// once, nothing leaves from outside the pair, and what is revoked at last has
// no state, whatever was under way.
func TestConcurrent(t *testing.T) {
	const rounds, perRound = 200, 20
	c := newCrowd(t)
	back := startReader(c.f)
	var writers, changer sync.WaitGroup
	stop := make(chan struct{})
	for _, inner := range c.sandboxes {
		batch := [][]byte{}
		for i := range perRound {
			to := []netip.AddrPort{origin, forbidden, at(gw, 53), origin}[i%4]
			batch = append(batch, frame(udp(t, at(inner, uint16(2000+i)), to, []byte("payload"))))
		}
		writers.Go(func() {
			for range rounds {
				bufs := make([][]byte, len(batch))
				for i := range batch {
					bufs[i] = append([]byte(nil), batch[i]...)
				}
				if _, err := c.f.Write(bufs, headroom); err != nil {
					t.Errorf("Write: %v", err)
				}
				answer := udp(t, at(gw, 53), at(inner, 2000), []byte("answer"))
				c.f.WriteLocal([][]byte{answer}, 0)
			}
		})
	}
	changer.Go(func() {
		_, workers := c.f.Policy()
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, inner := range c.sandboxes {
				c.f.SetPolicy(c.attached.Without(inner), workers)
				c.f.Revoke(inner)
				c.f.SetPolicy(c.attached, workers)
			}
		}
	})
	writers.Wait()
	close(stop)
	changer.Wait()

	counted := uint64(0)
	for o := range packet.Outcomes() {
		counted += c.f.counters.Drops(Egress, o)
	}
	counted += c.f.counters.Packets(Egress) + c.f.counters.Local()
	if want := uint64(len(c.sandboxes) * rounds * perRound); counted != want {
		t.Errorf("%d packets counted, want %d: %v", counted, want, c.counts())
	}
	if c.echo.wrong != 0 || c.echo.sent != c.f.counters.Packets(Egress) || c.services.n != c.f.counters.Local() {
		t.Errorf("uplink got %d and %d wrong, services %d; counters %v", c.echo.sent, c.echo.wrong, c.services.n, c.counts())
	}
	c.echo.drained()
	back.await(t, c.f.counters.Replies()+c.f.counters.Packets(Ingress)-c.f.counters.Drops(Ingress, packet.Unattached))
	if err := c.f.Close(); err != nil {
		t.Error(err)
	}
	<-back.done
	if !errors.Is(back.err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", back.err)
	}
}

// await waits until n packets have come.
func (r *reader) await(t *testing.T, n uint64) {
	t.Helper()
	late := time.After(10 * time.Second)
	for r.total() != n {
		select {
		case <-r.came:
		case <-late:
			t.Fatalf("%d packets were read within 10 s, want %d", r.total(), n)
		}
	}
}

// TestRevokeUnderWay: a sandbox is revoked while its packets are being written,
// again and again. No state is ever left.
func TestRevokeUnderWay(t *testing.T) {
	c := newCrowd(t)
	inner := c.sandboxes[0]
	_, workers := c.f.Policy()
	for round := range 300 {
		var writers sync.WaitGroup
		for w := range 2 {
			bufs := make([][]byte, 64)
			for i := range bufs {
				bufs[i] = frame(udp(t, at(inner, uint16(1000+round*2+w)), at(origin.Addr(), uint16(1+i)), nil))
			}
			writers.Go(func() {
				if _, err := c.f.Write(bufs, headroom); err != nil {
					t.Errorf("Write: %v", err)
				}
			})
		}
		c.f.SetPolicy(c.attached.Without(inner), workers)
		c.f.Revoke(inner)
		writers.Wait()
		for _, ip := range pair {
			c.f.withTable(ip, func(tb *nat.Table) {
				some, _ := tb.AppendSessions(nil, 0, 1<<20)
				for _, s := range some {
					t.Fatalf("round %d: %v has a session after it was revoked", round, s.Inner)
				}
			})
		}
		c.f.SetPolicy(c.attached, workers)
	}
}

// TestNoLostWakeUp: a reader that waits gets each reply at once, although nothing
// comes from the uplink.
func TestNoLostWakeUp(t *testing.T) {
	c := newCrowd(t)
	back := startReader(c.f)
	for i := range 2000 {
		c.f.WriteLocal([][]byte{udp(t, at(gw, 53), at(alice, 5000), nil)}, 0)
		back.await(t, uint64(i+1))
	}
	c.f.Close()
	<-back.done
}
