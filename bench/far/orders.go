package far

import (
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// What sockets, connections and the acceptor do to the runs, under the lock.

// admit counts a sealed message that is not to be obeyed. ReasonExpired is answered:
// it is authentic, and whoever sent it cannot know the clock here.
func (s *Server) admit(v wire.Verdict) wire.Reason {
	switch v {
	case wire.Good:
	case wire.Expired:
		s.counters.refuse(RefusedExpired)
		return wire.ReasonExpired
	case wire.Unsealed:
		s.counters.refuse(RefusedSeal)
	default:
		s.counters.refuse(RefusedForeign)
	}
	return wire.ReasonNone
}

// find returns the run of a sealed request, which opens it if it is one for a report.
// The caller holds the lock.
func (s *Server) find(h wire.Head, now time.Time) (*run, wire.Reason) {
	if h.Kind == wire.KindReport {
		if r := s.table.open(h.Run, now, s.dropped()); r != nil {
			return r, wire.ReasonNone
		}
		return nil, wire.ReasonRuns
	}
	if r := s.table.runs[h.Run]; r != nil {
		r.used = now
		return r, wire.ReasonNone
	}
	return nil, wire.ReasonRun
}

// order takes in a sealed request over TCP, of a connection from an address.
func (s *Server) order(m wire.Control, from netip.Addr, now time.Time) (wire.Report, wire.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, reason := s.find(m.Head, now)
	if r == nil {
		return wire.Report{}, reason
	}
	r.connected(from)
	if m.Head.Kind == wire.KindSource {
		return wire.Report{}, s.table.source(r, m.Head, m.Order)
	}
	return r.report(s.dropped()), wire.ReasonNone
}

func (r *run) connected(from netip.Addr) {
	r.tally.source(from, 1)
	r.tally.report.Connections++
}

// connected takes in a connection of a run; false if it is not open.
func (s *Server) connected(h wire.Head, from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.table.runs[h.Run]
	if r == nil || r.over {
		s.counters.refuse(RefusedRun)
		return false
	}
	r.used = time.Now()
	r.connected(from)
	return true
}

// asked counts an answer that was sent.
func (s *Server) asked(run uint64) {
	s.counters.asked.Add(1)
	s.update(run, func(r *wire.Report) { r.Asked++ })
}

func (s *Server) sunk(run uint64, n int) {
	s.counters.sunk.Add(uint64(n))
	s.update(run, func(r *wire.Report) { r.Sunk += uint64(n) })
}

func (s *Server) sourced(run uint64, n int) {
	s.counters.sourced.Add(uint64(n))
	s.update(run, func(r *wire.Report) { r.Sourced += uint64(n) })
}

func (s *Server) update(run uint64, f func(*wire.Report)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.table.runs[run]; r != nil {
		r.used = time.Now()
		f(&r.tally.report)
	}
}

// enlist keeps a connection, to close it with the server; false if there is no room.
func (s *Server) enlist(c *connection) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.connections) >= maxConnections {
		return false
	}
	s.connections[c] = struct{}{}
	return true
}

func (s *Server) dismiss(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.connections, c)
}
