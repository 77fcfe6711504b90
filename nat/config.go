package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Mapping says which flows of an inner endpoint share an external port.
type Mapping uint8

const (
	// AddressAndPortDependent gives each TCP connection an external port of its
	// own choice, so that one external port serves many destinations at once
	// and no port can be guessed from another. It departs from RFC 5382 REQ-1
	// (T-1): sandboxes only connect outwards.
	AddressAndPortDependent Mapping = iota
	// EndpointIndependent gives an inner endpoint one external port towards all
	// destinations (RFC 5382 REQ-1). UDP and ICMP echo are always mapped so.
	EndpointIndependent
)

// String returns the mapping's name in words.
func (m Mapping) String() string {
	switch m {
	case AddressAndPortDependent:
		return "address-and-port-dependently"
	case EndpointIndependent:
		return "endpoint-independently"
	}
	return "unknown"
}

// Timers are the times after which silent state goes. A zero stands for the
// default. Nothing may be set below its floor, or above a year:
//
//	UDP             default  5 min        floor  2 min
//	TCPEstablished  default  2 h 4 min    floor  2 h 4 min
//	TCPOpening      default  4 min        floor  6 s
//	TCPClosing      default  4 min        floor  4 min
//	ICMP            default  1 min        floor  1 min
//	Hold            default  2 min        floor  2 min
type Timers struct {
	// UDP is how long a mapping and each of its sessions outlive the last
	// packet from inside. Packets from outside refresh nothing.
	UDP time.Duration
	// TCPEstablished is the time of an established or half-closed connection,
	// refreshed by acceptable segments of both directions.
	TCPEstablished time.Duration
	// TCPOpening is the time of a connection whose handshake is not complete.
	TCPOpening time.Duration
	// TCPClosing is the time that a connection is kept after both FINs or a reset.
	TCPClosing time.Duration
	// ICMP is how long an echo identifier outlives the last request.
	ICMP time.Duration
	// Hold is how long a freed port, or TCP tuple, stays unused.
	Hold time.Duration
}

// timerRule is the default and the floor of one timer.
type timerRule struct {
	name             string
	at               func(*Timers) *time.Duration
	standard, lowest time.Duration
}

func timerRules() []timerRule {
	return []timerRule{
		// U-5: RFC 4787 REQ-5 forbids less than two minutes and recommends five.
		{"UDP", func(t *Timers) *time.Duration { return &t.UDP }, 300 * time.Second, 120 * time.Second},
		// T-5: RFC 5382 REQ-5: not less than 2 hours and 4 minutes.
		{"TCPEstablished", func(t *Timers) *time.Duration { return &t.TCPEstablished }, 7440 * time.Second, 7440 * time.Second},
		// RFC 7857 section 2.1 recommends four minutes and lets an opening
		// connection have less; the floor is the 6 s of an unanswered SYN (RFC 5382 REQ-4).
		{"TCPOpening", func(t *Timers) *time.Duration { return &t.TCPOpening }, 240 * time.Second, 6 * time.Second},
		// T-5, X-3: RFC 5382 REQ-5 and RFC 7857 section 2.1: not less than four minutes.
		{"TCPClosing", func(t *Timers) *time.Duration { return &t.TCPClosing }, 240 * time.Second, 240 * time.Second},
		// I-2: RFC 5508 REQ-2: not less than 60 seconds.
		{"ICMP", func(t *Timers) *time.Duration { return &t.ICMP }, 60 * time.Second, 60 * time.Second},
		// C-8: RFC 6888 REQ-8: 120 seconds.
		{"Hold", func(t *Timers) *time.Duration { return &t.Hold }, 120 * time.Second, 120 * time.Second},
	}
}

// longest bounds every timer, far below the span of a tick counter.
const longest = 365 * 24 * time.Hour

func (t *Timers) complete() error {
	for _, r := range timerRules() {
		d := r.at(t)
		switch {
		case *d == 0:
			*d = r.standard
		case *d < r.lowest:
			return fmt.Errorf("nat: timer %s is %v, but its RFC allows no less than %v: raise it or leave it out for %v", r.name, *d, r.lowest, r.standard)
		case *d > longest:
			return fmt.Errorf("nat: timer %s is %v: set at most %v", r.name, *d, longest)
		}
	}
	return nil
}

// Limits bound what one inner address may hold (RFC 6888 REQ-4, REQ-5). A zero
// stands for the default, a negative value for no limit. Whoever is at a limit
// is refused; nothing that exists is ever evicted for it (C-11).
type Limits struct {
	// Sessions counts (mapping, remote endpoint) pairs: default 65536.
	Sessions int
	// Ports counts external ports and identifiers of all protocols; a TCP
	// connection that is mapped by its destination counts one. Default 16384: one
	// that lets all of them go at once and takes as many again, while the first are
	// on hold, still leaves its neighbours half of the 64512 ports of an address.
	Ports int
	// HalfOpen counts TCP connections whose handshake is not complete: default 4096.
	HalfOpen int
	// NewPerSecond is the rate of new sessions, Burst how many may come at
	// once: default 20000, and twice the rate.
	NewPerSecond, Burst int
}

// unlimited is what a negative limit becomes.
const unlimited = 1<<31 - 1

// maxRate keeps a token bucket's arithmetic within 32 bits.
const maxRate = 100_000_000

func (l *Limits) complete() error {
	for _, f := range []struct {
		v        *int
		standard int
	}{{&l.Sessions, 65536}, {&l.Ports, 16384}, {&l.HalfOpen, 4096}, {&l.NewPerSecond, 20000}} {
		switch {
		case *f.v == 0:
			*f.v = f.standard
		case *f.v < 0 || *f.v > unlimited:
			*f.v = unlimited
		}
	}
	return completeRate(&l.NewPerSecond, &l.Burst)
}

// completeRate checks a rate that is not 0, and its burst.
func completeRate(rate, burst *int) error {
	if *rate > maxRate {
		*rate = unlimited
	}
	if *rate == unlimited {
		return nil
	}
	if *burst == 0 {
		*burst = 2 * *rate
	}
	if *burst < 1 || *burst > 2*maxRate {
		return fmt.Errorf("nat: a burst of %d new sessions cannot be: set 1 to %d, or leave it out", *burst, 2*maxRate)
	}
	return nil
}

// NetworkLimits bound what all inner addresses of a table hold together, beside
// [Config.MaxSessions]. They mean what those of [Limits] mean; a zero or a
// negative value is no limit. As they hold for one table, a network has them
// once for each of its external addresses.
type NetworkLimits struct {
	Ports, HalfOpen, NewPerSecond, Burst int
}

func (l *NetworkLimits) complete() error {
	for _, v := range []*int{&l.Ports, &l.HalfOpen, &l.NewPerSecond} {
		if *v <= 0 || *v > unlimited {
			*v = unlimited
		}
	}
	return completeRate(&l.NewPerSecond, &l.Burst)
}

// PortRange is the range of external ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Config is what a Table is made from.
type Config struct {
	// External is the dedicated IPv4 address, one that a host may have; not set where
	// Identity is.
	External netip.Addr
	// Identity makes a table that tracks without translating: see [Table]. It has no
	// ports, so that Ports, Reserved, PortBlock and TCPMapping are not set either.
	Identity bool
	Timers   Timers
	Limits   Limits
	Network  NetworkLimits
	// Ports is the range of external ports and echo identifiers: default
	// 1024-65535 (P-1). It may not begin below 1024 (U-3a).
	Ports PortRange
	// Reserved are ports never given to a mapping.
	Reserved []uint16
	// PortBlock makes each inner address have its ports from blocks of its own, of so
	// many ports: a power of two from 64 to 4096, or 0, so that any port is anybody's.
	// It makes the log short and the ports easier to guess (L-3, C-14, C-15).
	PortBlock int
	// TCPMapping is AddressAndPortDependent unless set.
	TCPMapping Mapping
	// Seed comes from the system's cryptographic source, fresh for each table.
	// Ports and the hash key derive from it; all zeros are refused.
	Seed [32]byte
	// MaxSessions bounds the table: default 1048576. Freed TCP tuples that are
	// on hold are bounded by the same number.
	MaxSessions int
	// EventBuffer is how many events wait for Drain: default 8192. Closed ones
	// may be more.
	EventBuffer int
	// Memory is where the table's records and indexes come from; nil stands for the
	// Go heap.
	Memory Memory
}

// who names the table in errors.
func (c *Config) who() string {
	if c.Identity {
		return "untranslated flows"
	}
	return c.External.String()
}

// maxSessions is what 32-bit record numbers leave room for.
const maxSessions = 1 << 28

func (c *Config) complete() error {
	if err := c.completeMapping(); err != nil {
		return err
	}
	if c.Seed == ([32]byte{}) {
		return fmt.Errorf("nat: the seed of the table for %s is all zeros: fill it from crypto/rand", c.who())
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = 1 << 20
	}
	if c.MaxSessions < 1 || c.MaxSessions > maxSessions {
		return fmt.Errorf("nat: a table of %d sessions cannot be: set 1 to %d", c.MaxSessions, maxSessions)
	}
	if c.Memory == nil {
		c.Memory = heap{}
	}
	if c.EventBuffer == 0 {
		c.EventBuffer = 8192
	}
	if c.EventBuffer < 1 || c.EventBuffer > 1<<24 {
		return fmt.Errorf("nat: an event buffer of %d cannot be: set 1 to %d", c.EventBuffer, 1<<24)
	}
	if err := c.Timers.complete(); err != nil {
		return err
	}
	if err := c.Limits.complete(); err != nil {
		return err
	}
	return c.Network.complete()
}

// completeMapping checks what inner endpoints are mapped to.
func (c *Config) completeMapping() error {
	if c.Identity {
		if c.External.IsValid() || c.Ports != (PortRange{}) || len(c.Reserved) > 0 || c.PortBlock != 0 || c.TCPMapping != AddressAndPortDependent {
			return errors.New("nat: an identity table maps to no other address and gives out no ports: leave External, Ports, Reserved, PortBlock and TCPMapping unset, or Identity")
		}
		return nil
	}
	if !c.External.Is4() {
		return fmt.Errorf("nat: external address %v is not IPv4: give the dedicated address of the table", c.External)
	}
	switch class := packet.ClassOf(c.External); class {
	case packet.ClassThisNetwork, packet.ClassMulticast, packet.ClassReserved, packet.ClassBroadcast:
		return fmt.Errorf("nat: external address %v is of the class %q, which no host has an address of: give the dedicated address of the table", c.External, class.String())
	}
	if c.Ports == (PortRange{}) {
		c.Ports = PortRange{1024, 65535}
	}
	if c.Ports.Last < c.Ports.First {
		return fmt.Errorf("nat: port range %d-%d ends before it begins: give First and Last the other way round", c.Ports.First, c.Ports.Last)
	}
	if c.Ports.First < 1024 {
		return fmt.Errorf("nat: port range %d-%d: it must lie within 1024-65535", c.Ports.First, c.Ports.Last)
	}
	if c.TCPMapping > EndpointIndependent {
		return fmt.Errorf("nat: unknown TCP mapping %d: set AddressAndPortDependent (%d) or EndpointIndependent (%d)", uint8(c.TCPMapping), uint8(AddressAndPortDependent), uint8(EndpointIndependent))
	}
	return c.checkBlock()
}

// tickLength is the grain of all timers: 100 ms. A deadline is rounded up, so
// that nothing goes early and nothing stays more than a tick too long.
const tickLength = 100 * time.Millisecond

// ticksPerSecond is how many ticks a second has.
const ticksPerSecond = uint32(time.Second / tickLength)

// tickOf is a coarse reading of the clock. It wraps after thirteen years, so
// two ticks are only ever compared by their difference.
func tickOf(now packet.Instant) uint32 { return uint32(now / packet.Instant(tickLength)) }

// ticks converts a timer, rounded up.
func ticks(d time.Duration) uint32 { return uint32((d + tickLength - 1) / tickLength) }

// due says whether a deadline has come.
func due(deadline, now uint32) bool { return int32(now-deadline) >= 0 }
