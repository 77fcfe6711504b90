package service

import "sync/atomic"

// rcodes is how many response codes are counted one by one: those of the header's four
// bits; extended ones (RFC 6891) share the last place.
const rcodes = 17

type counters struct {
	probes, probesRefused, probesFailed atomic.Uint64

	queries, malformed, refused, overloaded atomic.Uint64
	failures, timeouts, mismatched, retried atomic.Uint64
	rcodes                                  [rcodes]atomic.Uint64
}

// Stats are counters since New.
type Stats struct {
	Probes        uint64 // requests answered
	ProbesRefused uint64 // datagrams on the probe port that got no answer: no valid request, or not from the network
	ProbesFailed  uint64 // replies that could not be sent

	Queries    uint64         // DNS questions taken, over UDP and TCP
	Malformed  uint64         // DNS messages dropped without an answer: not a question
	Refused    uint64         // DNS messages and connections dropped: not from the network
	Overloaded uint64         // questions answered by SERVFAIL, and connections reset, because too many were in the works
	Failures   uint64         // questions answered by SERVFAIL because no upstream answered
	Timeouts   uint64         // upstreams that did not answer in time
	Mismatched uint64         // datagrams of upstreams that did not answer the question: dropped
	Retried    uint64         // truncated answers asked for again over TCP
	Rcodes     [rcodes]uint64 // answers by response code; extended ones in the last place
}

// Stats returns the counters.
func (s *Services) Stats() Stats {
	c := &s.counters
	st := Stats{
		Probes:        c.probes.Load(),
		ProbesRefused: c.probesRefused.Load(),
		ProbesFailed:  c.probesFailed.Load(),
		Queries:       c.queries.Load(),
		Malformed:     c.malformed.Load(),
		Refused:       c.refused.Load(),
		Overloaded:    c.overloaded.Load(),
		Failures:      c.failures.Load(),
		Timeouts:      c.timeouts.Load(),
		Mismatched:    c.mismatched.Load(),
		Retried:       c.retried.Load(),
	}
	for i := range st.Rcodes {
		st.Rcodes[i] = c.rcodes[i].Load()
	}
	return st
}
