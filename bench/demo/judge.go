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
	seen := a.Failure
	if seen == "" {
		seen = "an answer"
	} else if i := strings.LastIndex(seen, ": "); i >= 0 {
		seen = seen[i+2:] // what the kernel said, without who asked for what
	}
	seen += fmt.Sprintf(" after %.1f ms, %d packets sent", float64(a.Took)/float64(time.Millisecond), sent)
	return outcome{seen, a.Failure != "" && a.Took < refusalPatience && sent == 0}
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

// mayLeaveGateway says whether the gateway's host may send a packet: from a
// dedicated address, or as the near end of a tunnel.
func mayLeaveGateway(p netlab.Packet) bool {
	from := p.Src.Addr()
	tunnel := from == gatewayLink.Addr() && p.Proto == protocolUDP && isTunnelPort(p.Src.Port()) && p.Dst.Addr() == workerLink.Addr()
	return tunnel || acmePair.has(from) || globexPair.has(from)
}

// mayLeaveWorker says whether the worker may send a packet: to the far end of a
// tunnel, or for a connection that bypasses.
func mayLeaveWorker(bypassed []netip.AddrPort) func(netlab.Packet) bool {
	return func(p netlab.Packet) bool {
		if p.Src.Addr() != workerLink.Addr() {
			return false
		}
		tunnel := p.Proto == protocolUDP && p.Dst.Addr() == gatewayLink.Addr() && isTunnelPort(p.Dst.Port())
		return tunnel || p.Proto == protocolTCP && p.Dst == netip.AddrPortFrom(origin, portHTTP) && slices.Contains(bypassed, p.Src)
	}
}

func isTunnelPort(port uint16) bool { return port >= firstPort && port <= lastPort }

// onlyAllowed holds if a capture saw packets come in, lost none, and each was
// allowed. ARP has no address of a sender in the sense of IP. Whatever way a
// packet took, no inner address may be on it.
func onlyAllowed(packets []netlab.Packet, lost uint64, may func(netlab.Packet) bool) outcome {
	arrived := 0
	var wrong []string
	for _, p := range packets {
		if p.EtherType == etherARP {
			continue
		}
		inside := anyPrivate.Contains(p.Src.Addr()) || anyPrivate.Contains(p.Dst.Addr())
		if !p.Out {
			arrived++
		}
		if inside || !p.Out && !may(p) {
			wrong = append(wrong, p.String())
		}
	}
	seen := fmt.Sprintf("%d of %d packets wrong, %d lost", len(wrong), arrived, lost)
	if len(wrong) > 0 {
		seen += ", the first: " + wrong[0]
	}
	return outcome{seen, arrived > 0 && len(wrong) == 0 && lost == 0}
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
