package spec

import (
	"fmt"
	"math/bits"
	"time"
)

// Timers are a network's own times after which silent state goes. A zero is what the
// host's settings say. None may be below what its RFC demands.
type Timers struct {
	UDP            time.Duration `json:"udp,omitempty"`            // RFC 4787 REQ-5
	TCPEstablished time.Duration `json:"tcpEstablished,omitempty"` // RFC 5382 REQ-5
	TCPTransitory  time.Duration `json:"tcpTransitory,omitempty"`  // RFC 5382 REQ-5: opening and closing connections
	ICMP           time.Duration `json:"icmp,omitempty"`           // RFC 5508 REQ-2
}

// Limits are a network's own bounds, for each of its two addresses. A zero is what the
// host's settings say.
type Limits struct {
	SessionsPerIP          int `json:"sessionsPerIP,omitempty"`
	PortsPerIP             int `json:"portsPerIP,omitempty"`
	HalfOpenPerIP          int `json:"halfOpenPerIP,omitempty"`
	NewFlowsPerSecondPerIP int `json:"newFlowsPerSecondPerIP,omitempty"`
	SessionsPerSandbox     int `json:"sessionsPerSandbox,omitempty"`
	PortsPerSandbox        int `json:"portsPerSandbox,omitempty"`
	HalfOpenPerSandbox     int `json:"halfOpenPerSandbox,omitempty"`
	NewFlowsPerSecond      int `json:"newFlowsPerSecond,omitempty"`
}

// The sizes of port blocks.
const (
	minPortBlock = 64
	maxPortBlock = 4096
)

// Bounds of what a network may set for itself. The translator has the same ones; they are
// repeated here, so that a state is refused where it is written and not where it is carried out.
const (
	longestTimer = 30 * 24 * time.Hour
	maxSessions  = 1 << 28
	maxNewFlows  = 100_000_000
)

// checkTranslation checks how a network's flows are translated.
func (c *checker) checkTranslation(i int, n Network) {
	switch n.TCPMapping {
	case "", MapAddressAndPort, MapEndpointIndependent:
	default:
		c.add(at("networks", i, "tcpMapping"), fmt.Sprintf("there is no TCP mapping %q", n.TCPMapping),
			fmt.Sprintf("use %s (the default) or %s", MapAddressAndPort, MapEndpointIndependent))
	}
	if b := n.PortBlock; b != 0 && (b < minPortBlock || b > maxPortBlock || bits.OnesCount(uint(b)) != 1) {
		c.add(at("networks", i, "portBlock"), fmt.Sprintf("there are no blocks of %d ports", b),
			fmt.Sprintf("use a power of two from %d to %d, or 0 for none", minPortBlock, maxPortBlock))
	}
	for _, t := range []struct {
		key          string
		value, floor time.Duration
		rule         string
	}{
		{"udp", n.Timers.UDP, 120 * time.Second, "RFC 4787 REQ-5"},
		{"tcpEstablished", n.Timers.TCPEstablished, 7440 * time.Second, "RFC 5382 REQ-5"},
		{"tcpTransitory", n.Timers.TCPTransitory, 240 * time.Second, "RFC 5382 REQ-5"},
		{"icmp", n.Timers.ICMP, 60 * time.Second, "RFC 5508 REQ-2"},
	} {
		switch path := at("networks", i, "timers", t.key); {
		case t.value != 0 && t.value < t.floor:
			c.add(path, fmt.Sprintf("%v is less than %s allows", t.value, t.rule), fmt.Sprintf("write %v or more, or leave it out", t.floor))
		case t.value > longestTimer:
			c.add(path, fmt.Sprintf("%v is too long", t.value), fmt.Sprintf("write %v or less", longestTimer))
		}
	}
	l := n.Limits
	for _, q := range []struct {
		key        string
		value, max int
	}{
		{"sessionsPerIP", l.SessionsPerIP, maxSessions}, {"portsPerIP", l.PortsPerIP, maxSessions},
		{"halfOpenPerIP", l.HalfOpenPerIP, maxSessions}, {"newFlowsPerSecondPerIP", l.NewFlowsPerSecondPerIP, maxNewFlows},
		{"sessionsPerSandbox", l.SessionsPerSandbox, maxSessions}, {"portsPerSandbox", l.PortsPerSandbox, maxSessions},
		{"halfOpenPerSandbox", l.HalfOpenPerSandbox, maxSessions}, {"newFlowsPerSecond", l.NewFlowsPerSecond, maxNewFlows},
	} {
		if q.value < 0 || q.value > q.max {
			c.add(at("networks", i, "limits", q.key), fmt.Sprintf("%d cannot be", q.value), fmt.Sprintf("write 1 to %d, or leave it out", q.max))
		}
	}
	c.checkQuotas(i, n)
}

// checkQuotas refuses limits of which one makes another meaningless. What a network
// leaves to the host is not known here.
func (c *checker) checkQuotas(i int, n Network) {
	l := n.Limits
	for _, q := range []struct {
		one, all           string
		oneValue, allValue int
	}{
		{"sessionsPerSandbox", "sessionsPerIP", l.SessionsPerSandbox, l.SessionsPerIP},
		{"portsPerSandbox", "portsPerIP", l.PortsPerSandbox, l.PortsPerIP},
		{"halfOpenPerSandbox", "halfOpenPerIP", l.HalfOpenPerSandbox, l.HalfOpenPerIP},
		{"newFlowsPerSecond", "newFlowsPerSecondPerIP", l.NewFlowsPerSecond, l.NewFlowsPerSecondPerIP},
	} {
		if q.oneValue > q.allValue && q.allValue >= 1 {
			c.add(at("networks", i, "limits", q.one), fmt.Sprintf("%d for one sandbox is more than %s, %d, for all of them together", q.oneValue, q.all, q.allValue),
				"write less, or raise the other")
		}
	}
	if p := l.PortsPerSandbox; p > 0 && p < n.PortBlock {
		c.add(at("networks", i, "limits", "portsPerSandbox"), fmt.Sprintf("%d is less than one block, of %d ports (portBlock)", p, n.PortBlock),
			"write that or more, or choose smaller blocks")
	}
}
