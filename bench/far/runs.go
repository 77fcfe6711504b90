package far

import (
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// Bounds of what authentic requests may take up, in all runs together. A run and a
// page of windows take some kilobytes, a join about a hundred bytes.
const (
	maxRuns  = 1 << 12
	maxPages = 1 << 11 // of 256 flows each
	maxJoins = 1 << 18
)

// closeAfter is how long a run must be idle before others may take the room of its
// flows. The harness asks for its report soon after its last packet.
const closeAfter = 5 * time.Second

// forgetAfter is how long a run must be idle before another may take its place. No
// request is valid for that long, so that none can be repeated to a run that was
// forgotten.
const forgetAfter = 3 * wire.Validity

// maxPayload is the longest UDP payload that is generated: more than any link of
// interest carries.
const maxPayload = 8972

// join is where a flow wants generated packets.
type join struct {
	flow     uint16
	number   uint64 // of the request that said so
	sequence uint64 // of the next packet
	to       sockaddr
	from     local
}

// run is what is known of one run. It is over when others took the room of its flows:
// then it takes nothing in and sends nothing. Its counters and the numbers of requests
// are kept until it is forgotten, so that no old request is done twice.
type run struct {
	id    uint64
	over  bool
	tally tally
	used  time.Time // when something of it was last seen
	// dropped is what sockets had dropped before.
	dropped uint64

	joins   []join
	joined  map[uint16]int // where in joins a flow is
	order   wire.Order     // the last
	number  uint64         // of the last order; 0: none yet
	sources window         // numbers of the requests over TCP that were done
}

// table holds all runs. Its owner serialises.
type table struct {
	limits Limits
	budget budget
	runs   map[uint64]*run
	looked time.Time // when nothing was found to reclaim
}

func newTable(l Limits) *table {
	return &table{limits: l, budget: budget{maxPages, maxJoins}, runs: map[uint64]*run{}}
}

// open returns a run, which it may make; nil if there is no room. dropped is what
// sockets dropped so far.
func (t *table) open(id uint64, now time.Time, dropped uint64) *run {
	if r := t.runs[id]; r != nil {
		r.used = now
		return r
	}
	if len(t.runs) >= maxRuns && !t.forget(now) {
		return nil
	}
	r := &run{id: id, used: now, dropped: dropped, joined: map[uint16]int{}}
	r.tally.budget = &t.budget
	t.runs[id] = r
	return r
}

// report is what was counted of the run. dropped is what sockets dropped so far.
func (r *run) report(dropped uint64) wire.Report {
	report := r.tally.result()
	report.Dropped = dropped - r.dropped
	return report
}

// forget makes room by the run that is idle for longest, if it is for long enough.
func (t *table) forget(now time.Time) bool {
	var oldest *run
	for _, r := range t.runs {
		if oldest == nil || r.used.Before(oldest.used) {
			oldest = r
		}
	}
	if now.Sub(oldest.used) < forgetAfter {
		return false
	}
	t.close(oldest)
	delete(t.runs, oldest.id)
	return true
}

// close makes a run one that is over.
func (t *table) close(r *run) {
	r.tally.release()
	t.budget.joins += len(r.joins)
	r.joins, r.joined, r.over = nil, nil, true
}

// reclaim makes room for flows by the run that is idle for longest, if it is for long
// enough. Where none is it does not look again at once.
func (t *table) reclaim(now time.Time) bool {
	const pause = 100 * time.Millisecond
	if now.Before(t.looked.Add(pause)) {
		return false
	}
	var oldest *run
	for _, r := range t.runs {
		if !r.over && r.tally.report.Joined+r.tally.report.Flows > 0 && (oldest == nil || r.used.Before(oldest.used)) {
			oldest = r
		}
	}
	if oldest == nil || now.Sub(oldest.used) < closeAfter {
		t.looked = now
		return false
	}
	t.close(oldest)
	return true
}

// data takes in a datagram; false if there is no room for its flow.
func (t *table) data(r *run, h wire.Head, size int, now time.Time) bool {
	for !r.tally.data(h, size) {
		if !t.reclaim(now) {
			return false
		}
	}
	return true
}

// joinable makes room for one more join; false if there is none. Runs that are over may
// have had no joins.
func (t *table) joinable(now time.Time) bool {
	for t.budget.joins == 0 {
		if !t.reclaim(now) {
			return false
		}
	}
	return true
}

// join takes in where a flow wants packets. A request of a greater number takes the
// place of the one before, so that nobody who repeats an old one draws the packets to
// himself.
func (t *table) join(r *run, h wire.Head, to *sockaddr, from netip.Addr) wire.Reason {
	i, ok := r.joined[h.Flow]
	switch {
	case r.over:
		return wire.ReasonRun
	case !ok && !t.joinable(r.used):
		return wire.ReasonFlows
	case !ok:
		t.budget.joins--
		i = len(r.joins)
		r.joins = append(r.joins, join{flow: h.Flow})
		r.joined[h.Flow] = i
		r.tally.report.Joined++
	case h.Sequence < r.joins[i].number:
		return wire.ReasonNumber
	case h.Sequence == r.joins[i].number:
		return wire.ReasonNone
	}
	j := &r.joins[i]
	j.number, j.to, j.from = h.Sequence, *to, localOf(from)
	return wire.ReasonNone
}

// generate takes in an order. It is new unless it is the last one once more.
func (t *table) generate(r *run, h wire.Head, o wire.Order) (fresh bool, reason wire.Reason) {
	switch {
	case h.Sequence < r.number || h.Sequence == 0:
		return false, wire.ReasonNumber
	case h.Sequence == r.number:
		return false, wire.ReasonNone
	case r.over:
		return false, wire.ReasonRun
	case o.Rate == 0: // the end of what is sent
	case len(r.joins) == 0:
		return false, wire.ReasonFlows
	case o.Rate > t.limits.Rate || o.For > t.limits.For || o.Size < wire.HeadSize || o.Size > maxPayload:
		return false, wire.ReasonRate
	}
	o.Flows = uint32(len(r.joins))
	r.number, r.order = h.Sequence, o
	return true, wire.ReasonNone
}

// source takes in a request over TCP.
func (t *table) source(r *run, h wire.Head, o wire.Order) wire.Reason {
	if o.For > t.limits.For || (o.Bytes == 0 && o.For == 0) {
		return wire.ReasonRate
	}
	if h.Sequence > maxSequence {
		return wire.ReasonNumber
	}
	if a, _ := r.sources.note(h.Sequence); a == duplicate || a == stale {
		return wire.ReasonNumber
	}
	return wire.ReasonNone
}
