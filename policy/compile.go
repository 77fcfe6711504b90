package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Subjects that the same rules match are one class. A class holds a table of
// the prefixes that its rules name; the most specific one that contains a
// destination leads to a leaf, in which every rule that matches the
// destination is resolved to plain answers by protocol and port. Classes and
// leaves are made once and shared.

// span is a run of ports, up to last, with one answer. The spans of a leaf
// cover all ports in order.
type span struct {
	last   uint16
	answer decision
}

// leaf is the answer of the rules for one set of destinations.
type leaf struct {
	tcp, udp []span
	icmp     decision
}

// find returns the answer for a port.
func find(spans []span, port uint16) decision {
	lo, hi := 0, len(spans)-1
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); spans[mid].last < port {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return spans[lo].answer
}

// class is the compiled policy of all subjects that the same rules match.
type class struct {
	elsewhere      *leaf             // for destinations that no rule names
	named          *bart.Fast[*leaf] // nil where no rule names any
	dnsTCP, dnsUDP decision
}

// compiler holds what making classes takes. It does not change.
type compiler struct {
	config Config
	open   [4]ruleSet            // by dimension: the rules that leave it open
	naming [4]map[string]ruleSet // by dimension: the rules that name a value
}

// ruleSet is a set of indices of rules.
type ruleSet []uint64

func newRuleSet(n int) ruleSet        { return make(ruleSet, (n+63)/64) }
func (s ruleSet) add(i int)           { s[i/64] |= 1 << (i % 64) }
func (s ruleSet) contains(i int) bool { return s[i/64]>>(i%64)&1 != 0 }

// key returns the set as a string, for maps.
func (s ruleSet) key() string {
	b := make([]byte, 0, len(s)*8)
	for _, w := range s {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return string(b)
}

func newCompiler(c Config) *compiler {
	m := &compiler{config: c}
	for d := range m.open {
		m.open[d] = newRuleSet(len(c.Rules))
		m.naming[d] = make(map[string]ruleSet)
	}
	for i, r := range c.Rules {
		for d, values := range [4][]string{r.Projects, r.Environments, r.Kinds, r.Runtimes} {
			if len(values) == 0 {
				m.open[d].add(i)
			}
			for _, v := range values {
				if m.naming[d][v] == nil {
					m.naming[d][v] = newRuleSet(len(c.Rules))
				}
				m.naming[d][v].add(i)
			}
		}
	}
	return m
}

// matching returns the rules whose lists of senders match sub.
func (m *compiler) matching(sub Subject) ruleSet {
	set := newRuleSet(len(m.config.Rules))
	for d, v := range [4]string{sub.Project, sub.Environment, sub.Kind, sub.Runtime} {
		naming := m.naming[d][v]
		for i, w := range m.open[d] {
			if naming != nil {
				w |= naming[i]
			}
			if d == 0 {
				set[i] = w
			} else {
				set[i] &= w
			}
		}
	}
	return set
}

// class compiles the class of the rules in set.
func (m *compiler) class(set ruleSet) *class {
	everywhere := newRuleSet(len(m.config.Rules))
	at := new(bart.Table[ruleSet]) // the rules that name exactly this prefix
	var prefixes []netip.Prefix
	for i, r := range m.config.Rules {
		if !set.contains(i) {
			continue
		}
		if len(r.CIDRs) == 0 {
			everywhere.add(i)
		}
		for _, p := range r.CIDRs {
			named, ok := at.Get(p)
			if !ok {
				named = newRuleSet(len(m.config.Rules))
				at.Insert(p, named)
				prefixes = append(prefixes, p)
			}
			named.add(i)
		}
	}
	c := &class{elsewhere: m.leaf(everywhere)}
	c.dnsTCP, c.dnsUDP = m.dns(set, packet.TCP), m.dns(set, packet.UDP)
	if len(prefixes) == 0 {
		return c
	}
	c.named = new(bart.Fast[*leaf])
	leaves := make(map[string]*leaf)
	for _, p := range prefixes {
		rules := slices.Clone(everywhere)
		for _, named := range at.Supernets(p) {
			for i, w := range named {
				rules[i] |= w
			}
		}
		key := rules.key()
		if leaves[key] == nil {
			leaves[key] = m.leaf(rules)
		}
		c.named.Insert(p, leaves[key])
	}
	return c
}

// rules returns the rules of a set in their order.
func (m *compiler) rules(set ruleSet) []*Rule {
	var rules []*Rule
	for i := range m.config.Rules {
		if set.contains(i) {
			rules = append(rules, &m.config.Rules[i])
		}
	}
	return rules
}

// leaf resolves the rules of a set, all of which match the destination.
func (m *compiler) leaf(set ruleSet) *leaf {
	rules := m.rules(set)
	icmp := m.resolve(rules, func(r *Rule) bool { return len(r.Ports) == 0 && r.matchesProto(packet.ICMP) })
	return &leaf{tcp: m.spans(rules, packet.TCP), udp: m.spans(rules, packet.UDP), icmp: icmp}
}

// spans resolves rules for each port of a protocol. All ports between two
// bounds of ranges are alike.
func (m *compiler) spans(rules []*Rule, proto packet.Proto) []span {
	lasts := []uint16{0xffff}
	for _, r := range rules {
		for _, p := range r.Ports {
			lasts = append(lasts, p.First-1, p.Last)
		}
	}
	slices.Sort(lasts)
	var spans []span
	for _, last := range slices.Compact(lasts) {
		answer := m.resolve(rules, func(r *Rule) bool { return r.matchesProto(proto) && r.matchesPort(last) })
		if n := len(spans); n > 0 && spans[n-1].answer == answer {
			spans[n-1].last = last
		} else {
			spans = append(spans, span{last, answer})
		}
	}
	return spans
}

// dns resolves the rules of a set for the name server on the first address.
func (m *compiler) dns(set ruleSet, proto packet.Proto) decision {
	answer := m.resolve(m.rules(set), func(r *Rule) bool {
		return r.matchesProto(proto) && r.matchesPort(dnsPort) && m.speaksOfGateway(r)
	})
	if answer == forwarded {
		return local
	}
	return answer
}

// speaksOfGateway says whether the rule's CIDRs mean the first address, too: see
// the package's comment on DNS.
func (m *compiler) speaksOfGateway(r *Rule) bool {
	if len(r.CIDRs) == 0 {
		return true
	}
	return slices.ContainsFunc(r.CIDRs, func(p netip.Prefix) bool {
		if !p.Contains(m.config.Gateway) {
			return false
		}
		return p.Bits() >= m.config.Network.Bits() || r.Verdict != RuleAllow && !whollyPrivate(p)
	})
}

// whollyPrivate says whether p lies in one private block.
func whollyPrivate(p netip.Prefix) bool {
	return slices.ContainsFunc(privateBlocks(), func(block netip.Prefix) bool {
		return block.Contains(p.Addr()) && p.Bits() >= block.Bits()
	})
}

// resolve says what rules together answer to a packet, of which match tells
// whether a rule matches it.
func (m *compiler) resolve(rules []*Rule, match func(*Rule) bool) decision {
	answer := rejected
	if m.config.Mode == ModeAllow {
		answer = forwarded
	}
	for _, r := range rules {
		if !match(r) {
			continue
		}
		switch r.Verdict {
		case RuleReject:
			return rejected
		case RuleDrop:
			return dropped
		case RuleAllow:
			if m.config.Mode == ModeCustom {
				answer = forwarded
			}
		}
	}
	return answer
}

func (r *Rule) matchesProto(p packet.Proto) bool {
	return len(r.Protocols) == 0 || slices.Contains(r.Protocols, p)
}

func (r *Rule) matchesPort(port uint16) bool {
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.First <= port && port <= p.Last })
}

// privateBlocks are those that are reached by a peering or not at all.
func privateBlocks() []netip.Prefix {
	return []netip.Prefix{
		prefix(10, 0, 8), prefix(172, 16, 12), prefix(192, 168, 16), // RFC 1918
		prefix(100, 64, 10), // RFC 6598
	}
}

func prefix(a, b byte, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b}), bits)
}

// destinations returns the table of what no rule can change, by destination.
func destinations(c Config) *bart.Fast[decision] {
	t := new(bart.Fast[decision])
	loopback, rest := martianRejected, byRules
	if c.Loopback {
		loopback, rest = byRules, martianRejected
	}
	t.Insert(prefix(0, 0, 0), rest)
	t.Insert(prefix(0, 0, 8), martianDropped)
	t.Insert(prefix(127, 0, 8), loopback)
	t.Insert(prefix(169, 254, 16), martianRejected) // a refused metadata service is asked once, a silent one for seconds
	t.Insert(prefix(224, 0, 4), martianDropped)
	t.Insert(prefix(240, 0, 4), martianDropped)
	for _, p := range privateBlocks() {
		t.Insert(p, privateAddress)
	}
	for _, p := range c.Peered {
		t.Insert(p, byRulesPeered)
	}
	t.Insert(c.Network, privateAddress)
	for _, a := range c.Pair {
		t.Insert(host(a), byRules)
	}
	for _, a := range c.Own {
		t.Insert(host(a), ownAddress)
	}
	t.Insert(host(c.Gateway), local)
	return t
}

// host returns the prefix of one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 32) }
