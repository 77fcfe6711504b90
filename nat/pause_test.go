package nat

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// effort keeps the most of a processor's time that a call of this thread takes.
type effort struct{ began, longest time.Duration }

func (e *effort) start() { e.began = threadTime() }

func (e *effort) stop() { e.longest = max(e.longest, threadTime()-e.began) }

// threadTime is the processor's time that this thread has had.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// BenchmarkLongestPause is the longest single call of each kind, of those that may
// take long, in tables of a million sessions. Each kind's figure is the median of
// several rounds. It is of the processor's time that the call takes, because others
// on the machine make any call wait now and then.
func BenchmarkLongestPause(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	longest := map[string][]time.Duration{}
	for b.Loop() {
		for range 3 {
			for name, w := range pauses(b) {
				longest[name] = append(longest[name], w.longest)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for name, all := range longest {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), "us/"+name)
	}
}

// pauses lets a table grow to a million connections and all of them expire, and
// another lose all that one inner address has.
func pauses(b *testing.B) map[string]*effort {
	const n = 1_000_000
	var grow, batch, expire, revoke, mapping, survey effort
	p := populate(b, 0)
	syn := func(k, i int) { p.sizes[k] = p.segment(p.bufs[k][:], packet.SYN, inside(i), remote(i)) }
	for i := range n / 2 {
		syn(0, i)
		packet.Parse(&p.p, p.bufs[0][:p.sizes[0]])
		grow.start()
		o := p.Egress(&p.p, p.now)
		grow.stop()
		p.must(o)
	}
	for i := n / 2; i < n; i += batchMax {
		for k := range batchMax {
			syn(k, i+k)
		}
		p.parse()
		batch.start()
		p.EgressBatch(p.ps[:], p.out[:], p.now)
		batch.stop()
	}
	p.wait(10 * time.Minute)
	for p.sessions.live > 0 {
		p.events()
		expire.start()
		p.Expire(p.now, 4096)
		expire.stop()
	}
	one := inside(0)
	for i := range n / 4 {
		p.datagram(0, one, makeEndpoint(0xcb007100+uint32(i), 53).addrPort())
		packet.Parse(&p.p, p.bufs[0][:p.sizes[0]])
		p.must(p.Egress(&p.p, p.now))
	}
	p.wait(10 * time.Minute) // the mapping is over, and meets its next packet before Expire meets it
	p.datagram(0, one, web)
	packet.Parse(&p.p, p.bufs[0][:p.sizes[0]])
	mapping.start()
	p.must(p.Egress(&p.p, p.now))
	mapping.stop()
	for more := true; more; {
		p.events()
		revoke.start()
		_, more = p.Table.Revoke(one.Addr(), p.now, 1024)
		revoke.stop()
	}
	// A remote most of whose ports are taken, and of whom nothing has been learnt yet.
	for i := range 60_000 {
		p.view(packet.SYN, inside(i), web)
		p.must(p.Egress(&p.p, p.now))
	}
	clear(p.crowds)
	p.crowdRound = nil
	for i := range 100 {
		p.view(packet.SYN, inside(60_000+i), web)
		survey.start()
		p.Egress(&p.p, p.now)
		survey.stop()
	}
	return map[string]*effort{
		"growth": &grow, "batch-growth": &batch, "expire": &expire,
		"revoke": &revoke, "mapping": &mapping, "survey": &survey,
	}
}
