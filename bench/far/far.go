// Package far is the far side of the load-testing harness: what stands beyond the
// gateway, takes in what comes from sandboxes, counts it, answers it, and sends back.
// It speaks what package wire says, over UDP and TCP on one port.
package far

import (
	"net/netip"
	"time"

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
	// Prefixes hold further addresses that are asked, all on the same port. Their
	// packets must come to this machine's sockets:
	//
	//	ip route add local 198.18.0.0/22 dev lo
	Prefixes []netip.Prefix
	// Key seals requests and answers.
	Key [wire.KeySize]byte
	// In is where the sockets belong; nil: here.
	In Namespace
	// MaxRate and MaxFor bound what it is willing to send over UDP, in packets per
	// second of a run and in time; the latter also a source's connection. 0 for 2,000,000
	// and 10 minutes.
	MaxRate uint64
	MaxFor  time.Duration
}

// Server is a far side at work.
type Server struct {
	cfg  Config
	addr netip.AddrPort
}

// New starts a far side. Close it.
func New(cfg Config) (*Server, error) { return &Server{cfg: cfg, addr: cfg.Listen}, nil }

// Addr is the address and port on which it listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Open opens a run, as a request for its report does. It is false if too many are in use.
func (s *Server) Open(run uint64) bool { return false }

// Report is what was counted of a run; false if it is not open.
func (s *Server) Report(run uint64) (wire.Report, bool) { return wire.Report{}, false }

// Close ends all connections and goroutines.
func (s *Server) Close() error { return nil }
