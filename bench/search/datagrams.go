package search

import "time"

// Limits are what a rate of datagrams may show and still pass. Whoever measures states its own.
type Limits struct {
	// Lost is the part of packets that may be lost, or late.
	Lost float64
	// Reached is the part of the asked rate that the source must send at least, for a trial to
	// say something of the gateway.
	Reached float64
	// Queue is how much longer than the least of a run half of the packets may take: more only
	// fills queues. Where nobody looks at that, [Datagrams.Queue] is 0.
	Queue time.Duration
	// Full is from what part of its time on a core counts as busy all the time.
	Full float64
}

// Counts are what was counted of a load of datagrams.
type Counts struct {
	// Asked is how many packets the load should have had.
	Asked float64
	// Sent have left the source. Arrived of them came, once; InTime of those before the time
	// for them was over. Dropped were lost by who measures: the far side, or the source's own
	// sockets.
	Sent, Arrived, InTime, Dropped uint64
}

// Datagrams is what came of a load of datagrams, in parts.
type Datagrams struct {
	Lost    float64 // of what was sent
	Dropped float64 // of what was sent, by who measures
	Late    float64 // of what was sent, lost or not there in time
	Reached float64 // of what was asked, sent
	// Busy is the part of the time in which the gateway's core was used; less than 0: nobody
	// sees it.
	Busy float64
	// Queue is how much the median latency is above the least of the run.
	Queue time.Duration
}

// Weigh says what parts counts are. Where nothing was sent, all is lost.
func (c Counts) Weigh() (d Datagrams) {
	if c.Asked > 0 {
		d.Reached = float64(c.Sent) / c.Asked
	}
	if c.Sent == 0 {
		d.Lost, d.Late = 1, 1
		return d
	}
	n := float64(c.Sent)
	d.Lost, d.Dropped = max(0, 1-float64(c.Arrived)/n), float64(c.Dropped)/n
	d.Late = max(d.Lost, 1-float64(c.InTime)/n)
	return d
}

// Passes says whether a gateway could carry that for ever.
func (l Limits) Passes(d Datagrams) bool {
	return d.Late <= l.Lost && d.Reached >= l.Reached && d.Queue <= l.Queue
}

// Starved says of what does not pass that the source was the limit. What is lost by who
// measures is no loss of the gateway's; of a core that nobody sees only such a loss, or a rate
// that was not kept, says so.
func (l Limits) Starved(d Datagrams) bool {
	idle := d.Busy < l.Full
	if d.Busy < 0 {
		idle = d.Reached < l.Reached || d.Lost > l.Lost
	}
	return d.Lost-d.Dropped <= l.Lost && d.Queue <= l.Queue && idle
}
