package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Config is what a Snapshot is compiled from.
type Config struct {
	// Network is the inner CIDR.
	Network netip.Prefix
	// Gateway is the network's first address, where the local services are.
	Gateway netip.Addr
	// Own are addresses that no sandbox may reach: the gateway hosts' and all
	// dedicated ones.
	Own []netip.Addr
	// Pair are the network's own dedicated addresses, where the rules have the word as of
	// any public address: what they let pass comes back to another sandbox
	// of the network. One that is in Own as well stays closed.
	Pair []netip.Addr
	// Peered are the private ranges of the networks that this one is peered with.
	// What the rules let pass to them goes untranslated.
	Peered []netip.Prefix
	// Loopback says that the region's whole pool lies in 127.0.0.0/8: then its
	// sandboxes reach 127.0.0.0/8, what is peered, and nothing else.
	Loopback bool
	// Mode is the default of the rules.
	Mode Mode
	// Rules are looked at all together; their order only tells which of several
	// denying ones has the word.
	Rules []Rule
}

// Mode is what becomes of a packet that no rule matches.
type Mode uint8

// The modes. The zero value is the closed one.
const (
	ModeDeny   Mode = iota // reject everything; rules that allow have no effect
	ModeCustom             // reject what no rule allows
	ModeAllow              // forward what no rule denies
)

// Rule matches packets by sender and destination. An empty list matches anything.
type Rule struct {
	Projects     []string
	Environments []string
	Kinds        []string
	Runtimes     []string
	// CIDRs are destinations.
	CIDRs []netip.Prefix
	// Ports are destination ports. A rule with ports matches only TCP and UDP.
	Ports []PortRange
	// Protocols are packet.TCP, packet.UDP and packet.ICMP.
	Protocols []packet.Proto
	Verdict   RuleVerdict
}

// PortRange is a range of ports, both ends included.
type PortRange struct {
	First, Last uint16
}

// RuleVerdict is what a rule does with a packet that it matches.
type RuleVerdict uint8

// The verdicts of rules. The zero value is none, and an error.
const (
	_          RuleVerdict = iota
	RuleAllow              // forward it
	RuleReject             // drop it and tell the sandbox
	RuleDrop               // drop it silently
)

func (c *Config) validate() error {
	switch {
	case !c.Network.IsValid() || !c.Network.Addr().Is4():
		return fmt.Errorf("network %v is not an IPv4 CIDR: write one like 10.0.0.0/16", c.Network)
	case c.Network != c.Network.Masked():
		return fmt.Errorf("network %v has bits set below its prefix length: write %v", c.Network, c.Network.Masked())
	case !c.Network.Contains(c.Gateway):
		return fmt.Errorf("gateway address %v lies outside the network %v: use its first address", c.Gateway, c.Network)
	case c.Mode > ModeAllow:
		return fmt.Errorf("there is no mode %d: use ModeDeny, ModeCustom or ModeAllow", c.Mode)
	}
	for i, a := range c.Own {
		if !a.Is4() {
			return fmt.Errorf("own address %d (%v) is not IPv4", i, a)
		}
	}
	for i, a := range c.Pair {
		if !a.Is4() || c.Network.Contains(a) {
			return fmt.Errorf("address %d of the pair (%v) is not an IPv4 address outside the network %v", i, a, c.Network)
		}
	}
	for _, p := range c.Peered {
		if err := c.checkPeered(p); err != nil {
			return err
		}
	}
	var errs []error
	for i := range c.Rules {
		if err := c.Rules[i].validate(); err != nil {
			errs = append(errs, fmt.Errorf("rule %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// checkPeered keeps a peering from opening what is always closed.
func (c *Config) checkPeered(p netip.Prefix) error {
	switch {
	case !p.IsValid() || !p.Addr().Is4():
		return fmt.Errorf("peered range %v is not an IPv4 CIDR: write one like 10.30.0.0/16", p)
	case p != p.Masked():
		return fmt.Errorf("peered range %v has bits set below its prefix length: write %v", p, p.Masked())
	case !whollyPrivate(p):
		return fmt.Errorf("peered range %v is not private: a peering reaches ranges of RFC 1918 and RFC 6598 only", p)
	case p.Overlaps(c.Network):
		return fmt.Errorf("peered range %v overlaps the network %v: only one of the two can be reached; change one of them", p, c.Network)
	}
	return nil
}

func (r *Rule) validate() error {
	for _, list := range []struct {
		name   string
		values []string
	}{{"project", r.Projects}, {"environment", r.Environments}, {"kind", r.Kinds}, {"runtime", r.Runtimes}} {
		if slices.Contains(list.values, "") {
			return fmt.Errorf("an empty %s matches nobody: name one, or leave the whole list empty to match any", list.name)
		}
	}
	for _, p := range r.CIDRs {
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("destination %v is not an IPv4 CIDR: write one like 192.0.2.0/24", p)
		}
		if p != p.Masked() {
			return fmt.Errorf("destination %v has bits set below its prefix length: write %v", p, p.Masked())
		}
	}
	ported := len(r.Protocols) == 0
	for _, p := range r.Protocols {
		switch p {
		case packet.TCP, packet.UDP:
			ported = true
		case packet.ICMP:
		default:
			return fmt.Errorf("protocol %d is not translated: use TCP (6), UDP (17) or ICMP (1)", p)
		}
	}
	for _, p := range r.Ports {
		if p.First == 0 || p.First > p.Last {
			return fmt.Errorf("ports %d-%d are no range: write the lower one first, from 1 to 65535", p.First, p.Last)
		}
	}
	if len(r.Ports) > 0 && !ported {
		return errors.New("ICMP has no ports, so that the rule matches nothing: leave out the ports, or add TCP or UDP")
	}
	if r.Verdict < RuleAllow || r.Verdict > RuleDrop {
		return fmt.Errorf("there is no verdict %d: use RuleAllow, RuleReject or RuleDrop", r.Verdict)
	}
	return nil
}
