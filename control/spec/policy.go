package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Policy says what a network's sandboxes may reach. Always denied, whatever it
// says: link-local, loopback, multicast, class E, the gateway's own addresses,
// other sandboxes, and private addresses that are not peered.
type Policy struct {
	// Mode is what becomes of a packet that no rule matches; empty means [ModeAllow].
	Mode Mode `json:"mode,omitempty"`
	// Rules are looked at all together: a matching rule that denies wins over one that allows.
	Rules []Rule `json:"rules,omitempty"`
}

// Mode is a policy's default.
type Mode string

// The modes.
const (
	ModeAllow  Mode = "allow"  // everything, except what a rule denies
	ModeDeny   Mode = "deny"   // nothing, DNS included
	ModeCustom Mode = "custom" // only what a rule allows
)

// Rule matches packets by who sends them and whereto. An empty list matches anything.
type Rule struct {
	// Projects are project IDs, Environments names, Kinds and Runtimes as in an [Attachment].
	Projects     []string `json:"projects,omitempty"`
	Environments []string `json:"environments,omitempty"`
	Kinds        []Kind   `json:"kinds,omitempty"`
	Runtimes     []string `json:"runtimes,omitempty"`
	// CIDRs are destinations.
	CIDRs []netip.Prefix `json:"cidrs,omitempty"`
	// Ports are destination ports of TCP and UDP.
	Ports []PortRange `json:"ports,omitempty"`
	// Protocols are transports.
	Protocols []Protocol `json:"protocols,omitempty"`
	// Verdict is what the rule does with a packet that matches.
	Verdict Verdict `json:"verdict"`
}

// Protocol is a transport by name.
type Protocol string

// The transports that are translated.
const (
	ProtocolTCP  Protocol = "tcp"
	ProtocolUDP  Protocol = "udp"
	ProtocolICMP Protocol = "icmp"
)

// Verdict is what a rule does.
type Verdict string

// The verdicts of a rule.
const (
	VerdictAllow  Verdict = "allow"  // forward it
	VerdictReject Verdict = "reject" // refuse it, and tell the sandbox
	VerdictDrop   Verdict = "drop"   // refuse it silently
)

// PortRange is a range of ports, both ends included. Its text is "443" or "1000-2000".
type PortRange struct {
	First, Last uint16
}

// ParsePortRange reads the text form of a [PortRange].
func ParsePortRange(s string) (PortRange, error) {
	first, last, ranged := strings.Cut(s, "-")
	if !ranged {
		last = first
	}
	a, errA := parsePort(first)
	b, errB := parsePort(last)
	if err := errors.Join(errA, errB); err != nil {
		return PortRange{}, fmt.Errorf("%q is not a port or a range of ports; write one like 443 or 1000-2000", s)
	}
	if a > b {
		return PortRange{}, fmt.Errorf("%q begins above its end; write %d-%d", s, b, a)
	}
	return PortRange{First: a, Last: b}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = errors.New("port 0")
	}
	return uint16(n), err
}

// String returns the text form.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// MarshalText implements encoding.TextMarshaler.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *PortRange) UnmarshalText(text []byte) error {
	parsed, err := ParsePortRange(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}
