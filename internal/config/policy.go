package config

import (
	"fmt"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/policy"
)

// The protocol numbers of RFC 790, by which the compiler knows transports.
const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

// PolicyRules puts a network's policy in the compiler's words. That of a valid
// state has no error; an error names the rule.
func PolicyRules(p spec.Policy) (policy.Mode, []policy.Rule, error) {
	mode, err := policyMode(p.Mode)
	if err != nil {
		return 0, nil, err
	}
	rules := make([]policy.Rule, 0, len(p.Rules))
	for i, r := range p.Rules {
		rule, err := policyRule(r)
		if err != nil {
			return 0, nil, fmt.Errorf("rules[%d]: %w", i, err)
		}
		rules = append(rules, rule)
	}
	return mode, rules, nil
}

func policyMode(m spec.Mode) (policy.Mode, error) {
	switch m {
	case "", spec.ModeAllow:
		return policy.ModeAllow, nil
	case spec.ModeDeny:
		return policy.ModeDeny, nil
	case spec.ModeCustom:
		return policy.ModeCustom, nil
	}
	return 0, fmt.Errorf("mode: there is no mode %q; use allow, deny or custom", m)
}

func policyRule(r spec.Rule) (policy.Rule, error) {
	rule := policy.Rule{
		Projects:     r.Projects,
		Environments: r.Environments,
		Runtimes:     r.Runtimes,
		CIDRs:        r.CIDRs,
	}
	for _, k := range r.Kinds {
		rule.Kinds = append(rule.Kinds, string(k))
	}
	for _, p := range r.Ports {
		rule.Ports = append(rule.Ports, policy.PortRange(p))
	}
	for _, p := range r.Protocols {
		switch p {
		case spec.ProtocolTCP:
			rule.Protocols = append(rule.Protocols, protoTCP)
		case spec.ProtocolUDP:
			rule.Protocols = append(rule.Protocols, protoUDP)
		case spec.ProtocolICMP:
			rule.Protocols = append(rule.Protocols, protoICMP)
		default:
			return policy.Rule{}, fmt.Errorf("protocols: there is no protocol %q; use tcp, udp or icmp", p)
		}
	}
	switch r.Verdict {
	case spec.VerdictAllow:
		rule.Verdict = policy.RuleAllow
	case spec.VerdictReject:
		rule.Verdict = policy.RuleReject
	case spec.VerdictDrop:
		rule.Verdict = policy.RuleDrop
	default:
		return policy.Rule{}, fmt.Errorf("verdict: there is no verdict %q; use allow, reject or drop", r.Verdict)
	}
	return rule, nil
}
