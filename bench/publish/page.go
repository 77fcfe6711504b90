package publish

import (
	"fmt"

	"github.com/sallyport-net/sallyport/bench/chart"
	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/report"
)

// page is the report for a browser: how the gateway stands to its targets, and pictures of
// all figures.
func page(r *report.Report) string {
	verdict, _ := r.Verdict("")
	p := document.Page{
		Title: "What was measured", Verdict: "Targets: " + verdict, Terms: terms(), Style: chart.Style,
		Lead:  []string{"Bars are medians, lines on them reach from the least to the most of all rounds. What is measured beside the gateway has another colour."},
		Parts: []document.Part{{Title: "Targets", Table: r.Table(), Marked: "missed", Pictures: []string{r.Ratios().SVG()}}},
	}
	for _, one := range r.Parts() {
		part := document.Part{Title: one.Title, Text: []string{one.Command, one.Date + ", " + one.Machine}, Marks: one.Missing, Pictures: one.Pictures()}
		part.Verdict, part.Why = r.Verdict(one.Name)
		if n := len(one.Missing); n > 0 {
			part.Verdict += fmt.Sprintf("; notes: %d", n)
		}
		p.Parts = append(p.Parts, part)
	}
	return p.HTML()
}

// terms say what columns and figures mean.
func terms() [][2]string {
	return [][2]string{
		{"target", "What the gateway is held to. Met and missed are judged by medians."},
		{"ours", "Our gateway: tun has a kernel interface for its uplink and needs a privilege, sockets needs none. The median of all rounds, and in brackets the least and the most."},
		{"beside it", "The same work by others on the same machine, in turns with ours: wireguard-go with nftables, wireguard-go with gVisor's NAT, the kernel's WireGuard; direct is without a tunnel."},
		{"ratio or difference", "Ours divided by wireguard-go with nftables in the same rounds, so that less is better for costs and more is better for rates; with a sign: ours less theirs."},
		{"CPU of the process", "Time of the gateway's process by /proc/PID/stat, without what the kernel does for packets that arrive."},
		{"CPU of the core", "Time of the gateway's core by /proc/stat: user, system, interrupts and stolen. The fairest figure, as it has the kernel's part of all gateways."},
		{"most", "The highest rate per second with at most 0.1 % lost, or without a failed connection. At least: the harness could send no more."},
		{"notes", "What could not be measured, or is to be read with care. They stand before the part's pictures."},
		{"p50, p99", "Half, and 99 of 100, took at most so long, counted from when a request was due."},
		{"noisy", "Others used the gateway's core before, or the hypervisor gave time away, and too few rounds were left without that."},
	}
}
