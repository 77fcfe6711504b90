package service

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sallyport-net/sallyport/internal/netstack"
)

// Each new port that asks an upstream takes one of the dedicated IP and a socket of
// the uplink for as long as a UDP mapping lives and its port is held, which is
// seven minutes. If every question had its own, one client that asks some hundred
// questions a second would use up the ports of all. So a question has a port that
// was never used before, which nobody can guess (RFC 5452 section 9.2), while
// questions are few; beyond, it is drawn from those of the last minute.
const (
	// freshBurst is how many ports may be new at once, freshInterval how long it
	// takes until one more may be.
	freshBurst    = 128
	freshInterval = time.Second
	// portAge is how old a port is when it is not used again.
	portAge = time.Minute
)

// freshness says how many new ports there may be.
type freshness struct {
	mu   sync.Mutex
	full time.Time // when all of freshBurst are there again
}

// take has one more, if there is one.
func (f *freshness) take(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := now
	if f.full.After(now) {
		next = f.full
	}
	next = next.Add(freshInterval)
	if next.Sub(now) > freshBurst*freshInterval {
		return false
	}
	f.full = next
	return true
}

// port is a socket to one upstream, used by one question at a time.
type port struct {
	*netstack.UDPConn
	opened time.Time
}

// ports are the sockets to one upstream that no question uses now.
type ports struct {
	mu   sync.Mutex
	idle []port
}

// draw takes one by lot.
func (p *ports) draw(now time.Time) (port, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune(now)
	if len(p.idle) == 0 {
		return port{}, false
	}
	i, last := rand.IntN(len(p.idle)), len(p.idle)-1
	c := p.idle[i]
	p.idle[i], p.idle[last] = p.idle[last], port{}
	p.idle = p.idle[:last]
	return c, true
}

// keep makes c idle.
func (p *ports) keep(c port, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, c)
	p.prune(now)
}

// prune closes those that are too old. The caller holds p.mu.
func (p *ports) prune(now time.Time) {
	p.idle = slices.DeleteFunc(p.idle, func(c port) bool {
		old := now.Sub(c.opened) >= portAge
		if old {
			c.Close()
		}
		return old
	})
}

// close closes all that are idle.
func (p *ports) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}

// portTo returns a socket to u. There are never more than questions in the works
// and those of freshness together, so that where all are in use one more is opened.
func (s *Services) portTo(u *upstream, now time.Time) (port, error) {
	if !s.fresh.take(now) {
		if c, ok := u.ports.draw(now); ok {
			return c, nil
		}
	}
	c, err := s.device.DialUDP(netip.AddrPortFrom(s.config.Address, 0), u.addr)
	return port{c, now}, err
}
