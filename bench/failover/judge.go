package failover

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

const (
	etherIPv4    = 0x0800
	protocolICMP = 1
	protocolUDP  = 17
	// maxExamples is how many wrong packets are described.
	maxExamples = 5
)

// watched is a link whose packets are judged as they leave the machine.
type watched struct {
	name    string
	capture *netlab.Capture
	// own is the machine's own address; it may send from others, too.
	own   netip.Addr
	other []netip.Addr
	last  time.Time // of the newest packet that was looked at
	wrong uint64    // packets with an allowed source that it must not have
}

// judge looks at every packet that left a gateway host or the worker.
type judge struct {
	links    []*watched
	examples []string
}

// wire is what a judge saw so far.
type wire struct {
	Packets uint64 `json:"packets"` // that left the machines
	Wrong   uint64 `json:"wrong"`   // of those with a source, or a use of it, that must not be
	// Incomplete says why packets may have been missed; empty: none were.
	Incomplete string   `json:"incomplete,omitempty"`
	Examples   []string `json:"examples,omitempty"`
}

// newJudge judges the links of a world.
func newJudge(w *world) *judge {
	j := &judge{links: []*watched{{name: linkWorker, capture: w.watchWorker, own: workerLink.Addr()}}}
	for _, h := range w.hosts {
		j.links = append(j.links, &watched{name: h.name, capture: h.watch, own: h.link.Addr(), other: h.holds})
	}
	return j
}

// look takes in what passed since the last look. Call it often enough for the
// captures to keep the packets; of what they have forgotten, only the sources
// are judged.
func (j *judge) look() wire {
	var w wire
	var incomplete []error
	for _, l := range j.links {
		mark := l.last
		for _, p := range l.capture.Packets() {
			if p.At.After(mark) && l.allowed(p.Src.Addr()) && !j.proper(l, p) {
				l.wrong++
				j.example(l, p.String())
			}
			l.last = later(l.last, p.At)
		}
		w.Wrong += l.wrong
		for source, n := range l.capture.Sources() {
			if source.Out || !source.Addr.IsValid() { // what is not IP has no source
				continue
			}
			w.Packets += n
			if !l.allowed(source.Addr) {
				w.Wrong += n
				j.example(l, fmt.Sprintf("%d packets from %v", n, source.Addr))
			}
		}
		incomplete = append(incomplete, l.capture.Stats().Complete())
	}
	if err := errors.Join(incomplete...); err != nil {
		w.Incomplete = err.Error()
	}
	w.Examples = j.examples
	return w
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// example keeps a description.
func (j *judge) example(l *watched, what string) {
	if what = "on the link of " + l.name + ": " + what; len(j.examples) < maxExamples && !slices.Contains(j.examples, what) {
		j.examples = append(j.examples, what)
	}
}

// allowed says whether the machine may send from an address at all.
func (l *watched) allowed(source netip.Addr) bool {
	return source == l.own || slices.Contains(l.other, source)
}

// proper says whether a packet that leaves from an allowed source may be: from the
// machine's own address only tunnels' datagrams go, and what the kernel answers to
// those that nobody takes (ICMP, to another machine's own address).
func (j *judge) proper(l *watched, p netlab.Packet) bool {
	switch {
	case p.Out || p.EtherType != etherIPv4 || p.Src.Addr() != l.own:
		return true
	case p.Proto == protocolICMP:
		return slices.ContainsFunc(j.links, func(o *watched) bool { return o.own == p.Dst.Addr() })
	}
	return p.Proto == protocolUDP && (isTunnelPort(p.Src.Port()) || isTunnelPort(p.Dst.Port()))
}

func isTunnelPort(port uint16) bool { return port >= firstPort && port <= lastPort }
