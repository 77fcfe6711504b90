package demo

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// distinct are the addresses of a list without ports, each once, in order.
func distinct(seen []netip.AddrPort) []netip.Addr {
	var out []netip.Addr
	for _, a := range seen {
		out = append(out, a.Addr())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// words joins addresses.
func words(all []netip.Addr) string {
	if len(all) == 0 {
		return "nothing"
	}
	var texts []string
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " and ")
}

// allFrom holds if something was seen, and only from the pair.
func allFrom(seen []netip.AddrPort, p pair) outcome {
	all := distinct(seen)
	others := slices.ContainsFunc(all, func(a netip.Addr) bool { return !p.has(a) })
	return outcome{words(all), len(all) > 0 && !others}
}

// allFromBoth holds if both addresses of the pair were seen, and no other.
func allFromBoth(seen []netip.AddrPort, p pair) outcome {
	o := allFrom(seen, p)
	return outcome{fmt.Sprintf("%s, of %d functions", o.seen, len(seen)), o.held && len(distinct(seen)) == 2}
}

// allFromOne holds if all of many connections came from one address of the pair.
func allFromOne(seen []netip.AddrPort, p pair) outcome {
	o := allFrom(seen, p)
	ports := make(map[uint16]bool)
	for _, a := range seen {
		ports[a.Port()] = true
	}
	return outcome{fmt.Sprintf("%s, %d ports", o.seen, len(ports)), o.held && len(distinct(seen)) == 1 && len(ports) == many}
}

// twins holds if two functions have the same address inside, and each leaves
// from its own network's pair.
func twins(inner, outer [2]netip.AddrPort) outcome {
	seen := fmt.Sprintf("%v as %v, %v as %v", inner[0].Addr(), outer[0].Addr(), inner[1].Addr(), outer[1].Addr())
	return outcome{seen, inner[0] == inner[1] && acmePair.has(outer[0].Addr()) && globexPair.has(outer[1].Addr())}
}

// refusal holds if a function was told of it soon and nothing was sent.
func refusal(a answer, sent int) outcome {
	seen := "an answer"
	if a.Failure != "" {
		seen = lastWords(a.Failure)
	}
	seen += fmt.Sprintf(" after %.1f ms, %d packets sent", float64(a.Took)/float64(time.Millisecond), sent)
	return outcome{seen, a.Failure != "" && a.Took < refusalPatience && sent == 0}
}

// lastWords is what the kernel said, without who asked for what.
func lastWords(failure string) string {
	return failure[strings.LastIndex(": "+failure, ": "):]
}

// packetsTo counts packets to a destination that came in by a link.
func packetsTo(packets []netlab.Packet, to netip.Addr) (n int) {
	for _, p := range packets {
		if !p.Out && p.Dst.Addr() == to {
			n++
		}
	}
	return n
}

const (
	protocolUDP, protocolTCP = 17, 6
	etherARP                 = 0x0806
)

// origins of packets that may be on a link.
const (
	byTunnel = "tunnel"
	byPair   = "from the pairs"
	byBypass = "bypass"
)

// ofGateway says why the gateway's host may send a packet, "" if it may not:
// from a dedicated address, or as the near end of a tunnel.
func ofGateway(p netlab.Packet) string {
	from := p.Src.Addr()
	switch {
	case acmePair.has(from) || globexPair.has(from):
		return byPair
	case from == gatewayLink.Addr() && p.Proto == protocolUDP && isTunnelPort(p.Src.Port()) && p.Dst.Addr() == workerLink.Addr():
		return byTunnel
	}
	return ""
}

// ofWorker says the same of the worker: to the far end of a tunnel, or for a
// connection that bypasses.
func ofWorker(bypassed []netip.AddrPort) func(netlab.Packet) string {
	return func(p netlab.Packet) string {
		switch {
		case p.Src.Addr() != workerLink.Addr():
			return ""
		case p.Proto == protocolUDP && p.Dst.Addr() == gatewayLink.Addr() && isTunnelPort(p.Dst.Port()):
			return byTunnel
		case p.Proto == protocolTCP && p.Dst == netip.AddrPortFrom(origin, portHTTP) && slices.Contains(bypassed, p.Src):
			return byBypass
		}
		return ""
	}
}

func isTunnelPort(port uint16) bool { return port >= firstPort && port <= lastPort }

// onlyAllowed holds if a capture lost nothing, each packet that came in has a
// reason, and each of the reasons named was seen, so that the capture is known to
// see. ARP is not looked at. Whatever way a packet took, no inner address may be on it.
func onlyAllowed(packets []netlab.Packet, lost uint64, why func(netlab.Packet) string, reasons ...string) outcome {
	counts := make(map[string]int)
	var wrong []string
	for _, p := range packets {
		if p.EtherType == etherARP {
			continue
		}
		reason := byTunnel
		if !p.Out {
			reason = why(p)
			counts[reason]++
		}
		if reason == "" || anyPrivate.Contains(p.Src.Addr()) || anyPrivate.Contains(p.Dst.Addr()) {
			wrong = append(wrong, p.String())
		}
	}
	o := outcome{fmt.Sprintf("%d wrong, %d lost", len(wrong), lost), len(wrong) == 0 && lost == 0}
	for _, reason := range reasons {
		o.seen += fmt.Sprintf(", %d %s", counts[reason], reason)
		o.held = o.held && counts[reason] > 0
	}
	if len(wrong) > 0 {
		o.seen += "; the first wrong: " + wrong[0]
	}
	return o
}

// wrongSources reads the sum of a counter from metrics in their text format.
func wrongSources(text string) (outcome, error) {
	const name, label = "sallyport_drops_total{", `reason="wrong_source"`
	sum, series := 0.0, 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, name) || !strings.Contains(line, label) {
			continue
		}
		f := strings.Fields(line)
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			return outcome{}, fmt.Errorf("read the metric %q: %w", line, err)
		}
		sum += v
		series++
	}
	if series == 0 {
		return outcome{}, errors.New("sallyportd exports no drops_total with reason wrong_source")
	}
	return outcome{strconv.FormatFloat(sum, 'f', -1, 64), sum == 0}, nil
}
