package demo

import (
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
func twins(p *plan, inner [2]netip.Addr, outer [2]netip.AddrPort) outcome {
	seen := fmt.Sprintf("%v as %v, %v as %v", inner[0], outer[0].Addr(), inner[1], outer[1].Addr())
	return outcome{seen, inner[0] == inner[1] && p.acme.has(outer[0].Addr()) && p.globex.has(outer[1].Addr())}
}

// refusal holds if a function was told of it soon and nothing was sent, as counted
// in what can be seen.
func refusal(a answer, sent int, what string) outcome {
	seen := "an answer"
	if a.Failure != "" {
		seen = lastWords(a.Failure)
	}
	seen += fmt.Sprintf(" after %s, %d %s", milliseconds(a.Took), sent, what)
	return outcome{seen, a.Failure != "" && a.Took < refusalPatience && sent == 0}
}

// lastWords is what the kernel said, without who asked for what.
func lastWords(failure string) string {
	words := failure[strings.LastIndex(": "+failure, ": "):]
	return strings.TrimPrefix(words, "unknown error ") // of a proxy, which is known
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

// milliseconds is a short time as text.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// seconds is a longer one.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

const (
	protocolICMP, protocolTCP, protocolUDP = 1, 6, 17
	etherARP                               = 0x0806
)

// origins of packets that may be on a link.
const (
	byTunnel = "tunnel"
	bySite   = "site tunnel"
	byPair   = "from the pairs"
	byBypass = "bypass"
	byClosed = "port closed"
)

// ofGateway says why a gateway's host may send a packet, "" if it may not: from a
// dedicated address that it holds, as the near end of a tunnel, or because nobody
// is at that end, which the kernel tells the far one.
func ofGateway(p *plan, i int) func(netlab.Packet) string {
	g, home := p.gateways[i], p.gateways[atA].Endpoint
	return func(x netlab.Packet) string {
		from, to := x.Src.Addr(), x.Dst.Addr()
		others := to == p.worker || to == p.office || to == p.gateways[atA].Endpoint || to == p.gateways[atB].Endpoint
		switch {
		case slices.Contains(g.Dedicated, from):
			return byPair
		case from != g.Endpoint || !others:
			return ""
		case x.Proto == protocolUDP && g.Tunnels.has(x.Src.Port()) && x.Src.Port() != p.site && to == p.worker:
			return byTunnel
		case x.Proto == protocolUDP && i == atA && x.Src.Port() == p.site,
			x.Proto == protocolUDP && i == atB && to == home && x.Dst.Port() == p.site:
			return bySite
		case portClosed(x):
			return byClosed
		}
		return ""
	}
}

// portClosed says whether a packet tells that nobody has a UDP port.
func portClosed(x netlab.Packet) bool {
	const unreachable, port = 3, 3
	return x.Proto == protocolICMP && x.ICMPType == unreachable && x.ICMPCode == port
}

// ofWorker says the same of the worker: to the far end of a tunnel, or for a
// connection that bypasses.
func ofWorker(p *plan, bypassed []netip.AddrPort) func(netlab.Packet) string {
	return func(x netlab.Packet) string {
		i := slices.IndexFunc(p.gateways[:], func(g gatewayPlan) bool { return g.Endpoint == x.Dst.Addr() })
		switch {
		case x.Src.Addr() != p.worker:
			return ""
		case x.Proto == protocolUDP && i >= 0 && p.gateways[i].Tunnels.has(x.Dst.Port()):
			return byTunnel
		case portClosed(x) && i >= 0:
			return byClosed
		case x.Proto == protocolTCP && x.Dst == p.web && slices.Contains(bypassed, x.Src):
			return byBypass
		}
		return ""
	}
}

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

// dropsMetric counts dropped packets by reason.
const dropsMetric = "sallyport_drops_total{"

// metricSum adds the series of a metric, in the text format, that have all of some
// labels, and counts them.
func metricSum(text, name string, labels ...string) (sum float64, series int, err error) {
	for line := range strings.Lines(text) {
		other := func(label string) bool { return !strings.Contains(line, label) }
		if !strings.HasPrefix(line, name) || slices.ContainsFunc(labels, other) {
			continue
		}
		f := strings.Fields(line)
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read the metric %q: %w", line, err)
		}
		sum += v
		series++
	}
	return sum, series, nil
}
