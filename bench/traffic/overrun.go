package traffic

import "math"

// Overrun is what a source's own sockets have taken in and dropped so far. What they drop is
// lost by the machine that measures, and no loss of a gateway's.
type Overrun struct {
	received, runs, dropped uint64 // datagrams, the runs that they came in, and runs
}

// Overrun reads the counts. To find what was lost in between, read it twice.
func (s *Source) Overrun() (o Overrun) {
	for _, e := range s.ends {
		c := e.tunnel.SocketStats()
		o.received, o.runs, o.dropped = o.received+c.Received, o.runs+c.Runs, o.dropped+c.Dropped
	}
	return o
}

// Since is about how many packets were dropped since before. The kernel counts runs of them,
// which are taken to have been as long as those that came.
func (o Overrun) Since(before Overrun) uint64 {
	dropped := o.dropped - min(o.dropped, before.dropped)
	length := 1.0
	if runs := o.runs - min(o.runs, before.runs); runs > 0 {
		length = max(length, float64(o.received-min(o.received, before.received))/float64(runs))
	}
	return uint64(math.Round(float64(dropped) * length))
}
