package config

import (
	"fmt"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/policy"
)

// PolicyRules turns the rules of a network's desired state into those that the
// policy compiles. Its error names the rule; a state that [spec.State.Validate]
// finds good has none.
func PolicyRules(p spec.Policy) (policy.Mode, []policy.Rule, error) {
	mode, ok := map[spec.Mode]policy.Mode{
		"": policy.ModeAllow, spec.ModeAllow: policy.ModeAllow,
		spec.ModeDeny: policy.ModeDeny, spec.ModeCustom: policy.ModeCustom,
	}[p.Mode]
	if !ok {
		return 0, nil, fmt.Errorf("mode %q: write allow, deny or custom", p.Mode)
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

func policyRule(r spec.Rule) (policy.Rule, error) {
	out := policy.Rule{Projects: r.Projects, Environments: r.Environments, Runtimes: r.Runtimes}
	for _, k := range r.Kinds {
		out.Kinds = append(out.Kinds, string(k))
	}
	for _, c := range r.CIDRs {
		out.CIDRs = append(out.CIDRs, c.Masked())
	}
	for _, p := range r.Ports {
		out.Ports = append(out.Ports, policy.PortRange(p))
	}
	for _, p := range r.Protocols {
		switch p { // IP protocol numbers
		case spec.ProtocolTCP:
			out.Protocols = append(out.Protocols, 6)
		case spec.ProtocolUDP:
			out.Protocols = append(out.Protocols, 17)
		case spec.ProtocolICMP:
			out.Protocols = append(out.Protocols, 1)
		default:
			return policy.Rule{}, fmt.Errorf("protocol %q: write tcp, udp or icmp", p)
		}
	}
	verdict, ok := map[spec.Verdict]policy.RuleVerdict{
		spec.VerdictAllow: policy.RuleAllow, spec.VerdictReject: policy.RuleReject, spec.VerdictDrop: policy.RuleDrop,
	}[r.Verdict]
	if !ok {
		return policy.Rule{}, fmt.Errorf("verdict %q: write allow, reject or drop", r.Verdict)
	}
	out.Verdict = verdict
	return out, nil
}
