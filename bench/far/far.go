// Package far is the far side of the load-testing harness: what stands beyond the
// gateway, takes in what comes from sandboxes, counts it, answers it, and sends back.
// It speaks what package wire says, over UDP and TCP on one port.
//
// It must never be what a measurement stops at. On a Zen 4 it needs 0.6 us of a core
// for a datagram of 64 bytes that it counts, 3.2 us for one that it echoes and 2.5 us
// for one that it generates, the loopback's part of sending among them, and 17.5 us for
// a connection that asks, is answered and closed (go test -bench . ./bench/far); none
// of the datagrams takes an allocation. What it loses itself it reports as Dropped.
package far

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// Namespace is where sockets are made, such as a *netlab.Namespace.
type Namespace interface {
	Do(f func() error) error
}

// Config is what a Server needs.
type Config struct {
	// Listen is the address and port for UDP and TCP. Port 0 draws one.
	Listen netip.AddrPort
	// Prefixes hold further addresses that are asked, all on the same port and of the
	// same version. What is asked answers. Their packets must come to this machine's
	// sockets, for instance by
	//
	//	ip route add local 198.18.0.0/22 dev lo
	Prefixes []netip.Prefix
	// Key seals requests and answers.
	Key [wire.KeySize]byte
	// In is where the sockets belong; nil: here.
	In Namespace
	// Limits bound what requests can make it send. Zero values are replaced.
	Limits Limits
	// Sockets is how many goroutines receive datagrams, each by a socket of its own
	// (SO_REUSEPORT). 0: one for each two cores, up to 4.
	Sockets int
}

// Limits bound what the harness can order, of each run.
type Limits struct {
	Rate uint64        // packets per second over UDP; DefaultRate unless given
	For  time.Duration // of an order, and of a connection; DefaultFor unless given
}

// Limits unless others are given.
const (
	DefaultRate = 2_000_000
	DefaultFor  = 10 * time.Minute
)

func (c *Config) complete() error {
	c.Listen = netip.AddrPortFrom(c.Listen.Addr().Unmap(), c.Listen.Port())
	if !c.Listen.Addr().IsValid() {
		return errors.New("no address to listen on")
	}
	for _, p := range c.Prefixes {
		if !p.IsValid() || p.Addr().Is4() != c.Listen.Addr().Is4() {
			return fmt.Errorf("the prefix %v is not of the same version of IP as the address %v", p, c.Listen.Addr())
		}
	}
	const most = 64 // sockets
	if c.Sockets < 0 || c.Sockets > most || c.Limits.For < 0 {
		return fmt.Errorf("%d sockets and sending for %v: give 0 to %d, and no time below 0", c.Sockets, c.Limits.For, most)
	}
	if c.Limits.Rate == 0 {
		c.Limits.Rate = DefaultRate
	}
	if c.Limits.For == 0 {
		c.Limits.For = DefaultFor
	}
	if c.Sockets == 0 {
		c.Sockets = min(max(runtime.GOMAXPROCS(0)/2, 1), 4)
	}
	return nil
}

// Server is a far side at work. Its methods may be called by many goroutines.
type Server struct {
	cfg      Config
	addr     netip.AddrPort
	wild     bool // it listens on all addresses and looks which was asked
	filler   []byte
	counters counters
	sockets  []*socket
	listener *os.File
	quit     chan struct{}
	failed   chan struct{}
	ending   sync.Once
	work     sync.WaitGroup

	mu          sync.Mutex
	table       *table
	connections map[*connection]struct{}
	ended       bool
	err         error // the first that was not to be expected
}

// fillerSize is how much a source hands to the kernel at once, in bytes.
const fillerSize = 1 << 18

// New starts a far side. Close it.
func New(cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("start a far side: %w", err)
	}
	s := &Server{
		cfg: cfg, wild: len(cfg.Prefixes) > 0 || cfg.Listen.Addr().IsUnspecified(), filler: make([]byte, fillerSize), quit: make(chan struct{}), failed: make(chan struct{}),
		table: newTable(cfg.Limits), connections: map[*connection]struct{}{},
	}
	listen := s.listen
	if cfg.In != nil {
		listen = func() error { return cfg.In.Do(s.listen) }
	}
	if err := listen(); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("start a far side: %w", err)
	}
	for _, k := range s.sockets {
		s.spawn(k.serve)
	}
	s.spawn((&acceptor{server: s, file: s.listener}).serve)
	return s, nil
}

// listen makes all sockets. A port that UDP draws may be taken for TCP: then it draws
// another.
func (s *Server) listen() (err error) {
	const draws = 20
	for range draws {
		err = s.listenOn(s.cfg.Listen)
		if err == nil || s.cfg.Listen.Port() != 0 || !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
		for _, k := range s.sockets {
			_ = k.conn.Close()
		}
		s.sockets = nil
	}
	return err
}

func (s *Server) listenOn(at netip.AddrPort) error {
	if s.wild {
		all := netip.IPv4Unspecified()
		if !at.Addr().Is4() {
			all = netip.IPv6Unspecified()
		}
		at = netip.AddrPortFrom(all, at.Port())
	}
	for range s.cfg.Sockets {
		c, err := listenUDP(at, s.wild)
		if err != nil {
			return err
		}
		at = netip.AddrPortFrom(at.Addr(), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		k, err := newSocket(s, c)
		if err != nil {
			return errors.Join(err, c.Close())
		}
		s.sockets = append(s.sockets, k)
	}
	s.addr = netip.AddrPortFrom(s.cfg.Listen.Addr(), at.Port())
	var err error
	s.listener, err = listenTCP(at)
	return err
}

// serves says whether an address is one of its own.
func (s *Server) serves(a netip.Addr) bool {
	if a == s.addr.Addr() {
		return true
	}
	for _, p := range s.cfg.Prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return s.cfg.Listen.Addr().IsUnspecified()
}

// Failed is closed when a part of it could not go on; Close says why.
func (s *Server) Failed() <-chan struct{} { return s.failed }

// spawn runs f, whose error ends nothing else.
func (s *Server) spawn(f func() error) {
	s.work.Go(func() {
		if err := f(); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.err == nil {
				close(s.failed)
			}
			s.err = errors.Join(s.err, err)
		}
	})
}

// unlessOver is an error, but not that of what Close closed.
func (s *Server) unlessOver(err error) error {
	select {
	case <-s.quit:
		return nil
	default:
		return err
	}
}

// Addr is the address and port on which it listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Counts is what it took in so far.
func (s *Server) Counts() Counts {
	n := s.counters.counts()
	n.Dropped = s.dropped()
	s.mu.Lock()
	defer s.mu.Unlock()
	n.Runs = len(s.table.runs)
	return n
}

// Buffer is how much may wait in each of its sockets, in bytes.
func (s *Server) Buffer() int { return s.sockets[0].buffer }

// dropped is how many datagrams the kernel dropped because nobody fetched those before
// in time, or damaged. It never falls.
func (s *Server) dropped() (n uint64) {
	for _, k := range s.sockets {
		n += uint64(k.dropped())
	}
	return n
}

// Open opens a run, as a request for its report does. It is false if too many are in use.
func (s *Server) Open(run uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.open(run, time.Now(), s.dropped()) != nil
}

// Report is what was counted of a run; false if it is not open.
func (s *Server) Report(run uint64) (wire.Report, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.table.runs[run]
	if r == nil {
		return wire.Report{}, false
	}
	return r.report(s.dropped()), true
}

// Close ends all connections and goroutines. The error says what did not work before.
func (s *Server) Close() error {
	s.ending.Do(func() {
		s.dropped() // is kept
		close(s.quit)
		for _, k := range s.sockets {
			_ = k.conn.Close()
		}
		if s.listener != nil {
			_ = s.listener.Close()
		}
		s.mu.Lock()
		s.ended = true
		for c := range s.connections {
			_ = c.Close()
		}
		s.mu.Unlock()
	})
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
