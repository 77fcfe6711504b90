package policy

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// dnsPort is where the local name server listens, on UDP and TCP.
const dnsPort = 53

// Snapshot is one network's policy at one moment: its rules and who is
// attached. It is immutable and safe for any number of readers.
type Snapshot struct {
	compiler     *compiler
	destinations *bart.Fast[decision] // by the most specific prefix
	subjects     *bart.Fast[*class]   // /32 of every attached inner address
	classes      map[string]*class    // by the set of rules that match
}

// Compile returns the policy of a network to which nobody is attached. It keeps
// copies of c's lists. The error names every rule that is wrong by its index.
func Compile(c Config) (*Snapshot, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	c.Own, c.Pair, c.Peered = slices.Clone(c.Own), slices.Clone(c.Pair), slices.Clone(c.Peered)
	c.Rules = cloneRules(c.Rules)
	return &Snapshot{
		compiler:     newCompiler(c),
		destinations: destinations(c),
		subjects:     new(bart.Fast[*class]),
		classes:      make(map[string]*class),
	}, nil
}

func cloneRules(rules []Rule) []Rule {
	rules = slices.Clone(rules)
	for i := range rules {
		r := &rules[i]
		r.Projects, r.Environments = slices.Clone(r.Projects), slices.Clone(r.Environments)
		r.Kinds, r.Runtimes = slices.Clone(r.Kinds), slices.Clone(r.Runtimes)
		r.CIDRs, r.Ports, r.Protocols = slices.Clone(r.CIDRs), slices.Clone(r.Ports), slices.Clone(r.Protocols)
	}
	return rules
}

// With returns a snapshot in which inner is attached as sub; if it was attached
// before, the new subject replaces the old one. An address outside the network,
// and its gateway address, cannot be attached: s itself comes back, and their
// packets are dropped.
func (s *Snapshot) With(inner netip.Addr, sub Subject) *Snapshot {
	if !s.compiler.config.Network.Contains(inner) || inner == s.compiler.config.Gateway {
		return s
	}
	next := *s
	set := s.compiler.matching(sub)
	key := set.key()
	c := s.classes[key]
	if c == nil {
		c = s.compiler.class(set)
		next.classes = maps.Clone(s.classes)
		next.classes[key] = c
	}
	next.subjects = s.subjects.InsertPersist(host(inner), c)
	return &next
}

// Without returns a snapshot in which inner is not attached.
func (s *Snapshot) Without(inner netip.Addr) *Snapshot {
	if !inner.Is4() {
		return s
	}
	next := *s
	next.subjects = s.subjects.DeletePersist(host(inner))
	return &next
}

// Attached reports whether an inner address may send. It allocates nothing.
func (s *Snapshot) Attached(inner netip.Addr) bool {
	_, ok := s.subjects.Lookup(inner)
	return ok
}

// Subjects yields every inner address that may send, in no order that counts.
func (s *Snapshot) Subjects() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for p := range s.subjects.All() {
			if !yield(p.Addr()) {
				return
			}
		}
	}
}

// Decide says what becomes of p, a parsed packet from a sandbox. It allocates
// nothing.
func (s *Snapshot) Decide(p *packet.Packet) Decision { return s.decide(p).Decision() }

func (s *Snapshot) decide(p *packet.Packet) decision {
	switch p.Kind {
	case packet.KindTCP, packet.KindUDP, packet.KindICMPQuery, packet.KindICMPError, packet.KindFragment:
	default:
		return notParsed
	}
	c, ok := s.subjects.Lookup(p.Src)
	switch {
	case !ok:
		return s.stranger(p.Src)
	case p.Kind == packet.KindFragment:
		return fragment
	}
	where, _ := s.destinations.Lookup(p.Dst)
	switch where {
	case byRules:
		return c.decide(p)
	case byRulesPeered:
		if d := c.decide(p); d != forwarded {
			return d
		}
		return peered
	case local:
		return c.service(p)
	}
	return where
}

// stranger says why a source may not send.
func (s *Snapshot) stranger(src netip.Addr) decision {
	switch {
	case s.compiler.config.Network.Contains(src) && src != s.compiler.config.Gateway:
		return unattached
	case packet.ClassOf(src).Host():
		return spoofed
	}
	return martianDropped
}

// decide is the answer of the rules.
func (c *class) decide(p *packet.Packet) decision {
	l := c.elsewhere
	if c.named != nil {
		if named, ok := c.named.Lookup(p.Dst); ok {
			l = named
		}
	}
	switch p.Kind {
	case packet.KindTCP:
		return find(l.tcp, p.DstPort)
	case packet.KindUDP:
		return find(l.udp, p.DstPort)
	}
	return l.icmp
}

// service is the answer for the network's first address.
func (c *class) service(p *packet.Packet) decision {
	switch p.Kind {
	case packet.KindTCP:
		if p.DstPort == dnsPort {
			return c.dnsTCP
		}
	case packet.KindUDP:
		switch p.DstPort {
		case dnsPort:
			return c.dnsUDP
		case packet.ProbePort:
			return local
		}
	case packet.KindICMPQuery:
		if p.ICMPType == packet.ICMPEchoRequest {
			return local
		}
	}
	return noService
}
