package policy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// oracle decides by walking over all peered ranges and rules, as the documentation
// tells it. Its destinations are public or private.
func oracle(c Config, sub Subject, p *packet.Packet) Decision {
	if !p.Dst.IsPrivate() {
		return oracleRules(c, sub, p)
	}
	for _, peered := range c.Peered {
		if peered.Contains(p.Dst) {
			if d := oracleRules(c, sub, p); d != pass {
				return d
			}
			return Decision{Peering, packet.Pass}
		}
	}
	return private
}

// oracleRules decides about a destination that the rules govern.
func oracleRules(c Config, sub Subject, p *packet.Packet) Decision {
	for _, r := range c.Rules {
		if r.Verdict != RuleAllow && matches(r, sub, p) {
			if r.Verdict == RuleDrop {
				return silence
			}
			return refuse
		}
	}
	switch c.Mode {
	case ModeAllow:
		return pass
	case ModeCustom:
		for _, r := range c.Rules {
			if r.Verdict == RuleAllow && matches(r, sub, p) {
				return pass
			}
		}
	}
	return refuse
}

func matches(r Rule, sub Subject, p *packet.Packet) bool {
	in := func(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }
	if !in(r.Projects, sub.Project) || !in(r.Environments, sub.Environment) || !in(r.Kinds, sub.Kind) || !in(r.Runtimes, sub.Runtime) {
		return false
	}
	if len(r.CIDRs) > 0 && !slices.ContainsFunc(r.CIDRs, func(c netip.Prefix) bool { return c.Contains(p.Dst) }) {
		return false
	}
	if len(r.Protocols) > 0 && !slices.Contains(r.Protocols, p.Proto) {
		return false
	}
	if len(r.Ports) == 0 {
		return true
	}
	return p.Proto != packet.ICMP && slices.ContainsFunc(r.Ports, func(q PortRange) bool { return q.First <= p.DstPort && p.DstPort <= q.Last })
}

// drawDestination prefers a small part of the address space, so that rules
// overlap and packets meet them.
func drawDestination(t *rapid.T) netip.Addr {
	v := 0xc6336400 | rapid.Uint32Range(0, 0xff).Draw(t, "low") // 198.51.100.0/24
	v ^= rapid.SampledFrom([]uint32{0, 0, 0, 0x100, 0x10000, privateFlip, privateFlip}).Draw(t, "flip")
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

// privateFlip makes 192.168.100.0/24 of 198.51.100.0/24.
const privateFlip = 0xc6336400 ^ 0xc0a86400

func drawPeered(t *rapid.T) (peered []netip.Prefix) {
	for range rapid.IntRange(0, 3).Draw(t, "peered") {
		bits := rapid.SampledFrom([]int{16, 20, 24, 25, 28, 32}).Draw(t, "bits")
		low := byte(rapid.IntRange(0, 255).Draw(t, "low"))
		peered = append(peered, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 100, low}), bits).Masked())
	}
	return peered
}

func drawSubject(t *rapid.T) Subject {
	word := rapid.SampledFrom([]string{"", "a", "b", "c"})
	return Subject{word.Draw(t, "project"), word.Draw(t, "environment"), word.Draw(t, "kind"), word.Draw(t, "runtime")}
}

func drawRule(t *rapid.T) Rule {
	words := func(label string) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 2, rapid.ID[string]).Draw(t, label)
	}
	r := Rule{Verdict: rapid.SampledFrom([]RuleVerdict{RuleAllow, RuleAllow, RuleReject, RuleDrop}).Draw(t, "verdict")}
	switch rapid.IntRange(0, 3).Draw(t, "who") {
	case 0:
		r.Projects = words("projects")
	case 1:
		r.Environments, r.Kinds = words("environments"), words("kinds")
	case 2:
		r.Runtimes = words("runtimes")
	}
	for range rapid.IntRange(0, 3).Draw(t, "cidrs") {
		bits := rapid.SampledFrom([]int{0, 8, 16, 20, 24, 25, 26, 28, 30, 31, 32}).Draw(t, "bits")
		r.CIDRs = append(r.CIDRs, netip.PrefixFrom(drawDestination(t), bits).Masked())
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		a, b := drawPort(t), drawPort(t)
		r.Ports = append(r.Ports, PortRange{min(a, b), max(a, b)})
	}
	r.Protocols = rapid.SliceOfNDistinct(rapid.SampledFrom([]packet.Proto{packet.TCP, packet.UDP, packet.ICMP}), 0, 2, rapid.ID[packet.Proto]).Draw(t, "protocols")
	if len(r.Protocols) == 1 && r.Protocols[0] == packet.ICMP {
		r.Ports = nil
	}
	return r
}

func drawPort(t *rapid.T) uint16 {
	return rapid.SampledFrom([]uint16{1, 2, 3, 52, 53, 54, 442, 443, 444, 65534, 65535}).Draw(t, "port")
}

// TestDecideAgainstOracle proves the compiled tables against the walk over all
// rules, through attaching, renaming and detaching.
func TestDecideAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := config(rapid.SampledFrom([]Mode{ModeDeny, ModeCustom, ModeAllow}).Draw(t, "mode"))
		c.Own, c.Peered = nil, drawPeered(t)
		for range rapid.IntRange(0, 70).Draw(t, "rules") { // more than one word of a rule set
			c.Rules = append(c.Rules, drawRule(t))
		}
		s, err := Compile(c)
		if err != nil {
			t.Fatal(err)
		}
		attached := map[netip.Addr]Subject{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			inner := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(2, 9).Draw(t, "inner"))})
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				s = s.Without(inner)
				delete(attached, inner)
				continue
			case 1:
				sub := drawSubject(t)
				s = s.With(inner, sub)
				attached[inner] = sub
				continue
			}
			p := drawProbe(t)
			p.Src = inner
			want := Decision{Drop, packet.Unattached}
			if sub, ok := attached[inner]; ok {
				want = oracle(c, sub, p)
			}
			if got := s.Decide(p); got != want {
				t.Fatalf("%+v to %v:%d: %v %v, want %v %v", attached[inner], p.Dst, p.DstPort, got.Verdict, got.Outcome, want.Verdict, want.Outcome)
			}
		}
	})
}

func drawProbe(t *rapid.T) *packet.Packet {
	dst := drawDestination(t)
	switch rapid.IntRange(0, 3).Draw(t, "packet") {
	case 0:
		return tcp(dst, drawPort(t))
	case 1:
		return udp(dst, drawPort(t))
	case 2:
		return icmp(packet.KindICMPError, 3, dst)
	}
	return echo(dst)
}

// wide is a policy of many rules, half of them for one project each.
func wide(tb testing.TB) (*Snapshot, []*packet.Packet) {
	tb.Helper()
	var rules []Rule
	for i := range 500 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(i >> 4), byte(i << 4), 0}), 20+i%13).Masked()
		rules = append(rules,
			Rule{CIDRs: []netip.Prefix{p}, Ports: []PortRange{{uint16(i + 1), uint16(i + 1000)}}, Verdict: RuleReject},
			Rule{Projects: []string{fmt.Sprint("p", i)}, CIDRs: []netip.Prefix{p}, Verdict: RuleReject})
	}
	c := config(ModeAllow, rules...)
	c.Peered = cidrs("192.168.64.0/18", "172.20.0.0/16")
	s := compile(tb, c)
	var packets []*packet.Packet
	for i := range 1024 {
		inner := netip.AddrFrom4([4]byte{10, 0, byte(1 + i>>8), byte(i)})
		s = s.With(inner, Subject{Project: fmt.Sprint("p", i%64)})
		p := tcp(netip.AddrFrom4([4]byte{198, byte(i >> 5), byte(i << 3), 1}), 443)
		p.Src = inner
		packets = append(packets, p)
	}
	return s, packets
}

func TestDecideAllocatesNothing(t *testing.T) {
	s, packets := wide(t)
	packets = append(packets, udp(firstIP, 53), tcp(to("169.254.169.254"), 80), tcp(to("172.20.0.9"), 5432), from("192.0.2.1", echo(outside)))
	if n := testing.AllocsPerRun(10, func() {
		for _, p := range packets {
			s.Decide(p)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	many, packets := wide(b)
	plain := compile(b, config(ModeAllow))
	for _, p := range packets {
		plain = plain.With(p.Src, function)
	}
	for _, c := range []struct {
		name string
		s    *Snapshot
	}{{"no rules", plain}, {"1000 rules", many}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if c.s.Decide(packets[i%len(packets)]).Outcome == packet.Unspecified {
					b.Fatal("undecided")
				}
			}
		})
	}
}

func BenchmarkWith(b *testing.B) {
	s, packets := wide(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s = s.With(packets[i%len(packets)].Src, function)
	}
}
