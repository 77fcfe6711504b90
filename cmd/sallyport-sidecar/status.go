package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/console"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar"
)

const (
	// askTimeout bounds what the sidecar takes to answer.
	askTimeout = 10 * time.Second
	// listedSandboxes is how many sandboxes are listed one by one unasked, and
	// listedReasons how many reasons why passive networks are not ready.
	listedSandboxes = 50
	listedReasons   = 10
)

func statusCommand() *cobra.Command {
	var output string
	var all bool
	socket := socketSetting()
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show control planes, gateways in use, tunnels, last switches and sandboxes",
		Long: `Show what the sidecar of this worker knows: whether control planes answer, which
gateway the sandboxes of each network use, how the tunnels are, the last switches,
and the sandboxes, with the reason where one's passive network is not ready.

More than 50 sandboxes are counted instead, unless with --all.`,
		Example: "  sallyport-sidecar status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(output); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			r, err := sidecar.Ask(ctx, socket)
			if err != nil {
				return err
			}
			if output == "json" {
				return console.JSON(cmd.OutOrStdout(), r)
			}
			return printReport(cmd.OutOrStdout(), r, all, time.Now())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&socket, "socket", socket, "`PATH` of the sidecar's socket (or "+socketVariable+")")
	flags.StringVar(&output, "output", "table", "`FORMAT` of what is printed: table or json")
	flags.BoolVar(&all, "all", false, "list every sandbox, however many there are")
	return cmd
}

// printReport prints tables, what concerns most sandboxes first.
func printReport(w io.Writer, r sidecar.Report, all bool, now time.Time) error {
	head := &console.Table{}
	head.Row("REGION", r.Region)
	head.Row("PUBLIC KEY", r.PublicKey)
	head.Row("ATTACHED", r.Attached)
	for _, why := range slices.Sorted(maps.Keys(r.BypassedTotal)) {
		head.Row("BYPASS: "+why, fmt.Sprintf("%d now, %d since the start", r.Bypassed[why], r.BypassedTotal[why]))
	}
	tables := []*console.Table{head, planesTable(r.Status), groupsTable(r.Status), pathsTable(r.Status, now), switchesTable(r.Status), dropsTable(r.Status)}
	if all || len(r.Sandboxes) <= listedSandboxes {
		return console.PrintAll(w, append(tables, sandboxesTable(r.Listing))...)
	}
	if err := console.PrintAll(w, append(tables, countsTable(r.Listing), reasonsTable(r.Listing))...); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d sandboxes are not listed; --all lists them.\n", len(r.Sandboxes))
	return err
}

func planesTable(s sidecar.Status) *console.Table {
	t := &console.Table{}
	t.Row("CONTROL PLANE", "OF", "STATE", "SINCE (UTC)", "ERROR")
	add := func(region, role string, c sidecar.ControlStatus) {
		state := "unreachable"
		switch {
		case c.Reachable:
			state = "reachable"
		case c.Since.IsZero():
			state = "not asked yet"
		}
		t.Row(region, role, state, timeText(c.Since), c.Error)
	}
	add(s.Region, "own region", s.Control)
	for _, region := range slices.Sorted(maps.Keys(s.Regions)) {
		add(region, "passive region", s.Regions[region])
	}
	return t
}

func groupsTable(s sidecar.Status) *console.Table {
	t := &console.Table{}
	t.Row("NETWORK", "SANDBOXES", "PREFER", "IN USE", "STATE", "SINCE (UTC)", "SWITCHES", "PASSIVE NETWORK", "OLD FLOWS ON")
	for _, n := range s.Networks {
		for _, g := range n.Groups {
			var left []string
			for _, h := range g.Lingering {
				left = append(left, h.String())
			}
			t.Row(n.ID, g.Sandboxes, g.Prefers, g.Choice, g.State, timeText(g.Since), g.Switches, g.Passive, strings.Join(left, ", "))
		}
	}
	return t
}

func pathsTable(s sidecar.Status, now time.Time) *console.Table {
	t := &console.Table{}
	t.Row("NETWORK", "ROLE", "HOST", "REGION", "ENDPOINT", "STATE", "RTT", "MISSES", "HEALTH", "LAST HANDSHAKE")
	for _, n := range s.Networks {
		for _, p := range n.Paths {
			role := string(p.Gateway.Role)
			if p.Network != n.ID {
				role += " (" + p.Network + ")"
			}
			t.Row(n.ID, role, p.Gateway.Host, p.Region, endpointText(p.Gateway.Endpoint), pathState(p), rttText(p.RTTMicros), p.Misses, pathHealth(p), agoText(p.Handshake, now))
		}
	}
	return t
}

// pathState says also for how long a gateway has been silent that is no good.
func pathState(p sidecar.PathStatus) string {
	text := p.State
	if !p.Alive && p.SilenceMillis > 0 {
		text += fmt.Sprintf(" (silent for %v)", shortly(time.Duration(p.SilenceMillis)*time.Millisecond))
	}
	if p.Unlisted {
		text += ", unlisted"
	}
	return text
}

// pathHealth is what the gateway's last answer said, if there was one. That a dead
// one was well is not worth telling.
func pathHealth(p sidecar.PathStatus) string {
	if p.Answers == 0 || !p.Alive && p.Health == 0 {
		return ""
	}
	return healthText(packet.Health(p.Health))
}

func switchesTable(s sidecar.Status) *console.Table {
	t := &console.Table{}
	t.Row("SWITCHED (UTC)", "NETWORK", "PREFER", "FROM", "TO", "REASON", "DETECTION", "FLOWS RESET", "FLOWS MOVED")
	for _, n := range s.Networks {
		for _, r := range n.Switches {
			reason := r.Reason
			if !r.Switched {
				reason += " (old flows only)"
			}
			t.Row(timeText(r.At), n.ID, r.Prefers, r.From, r.To, reason, fmt.Sprintf("%.0f ms", r.DetectionMillis), r.Reset, r.Moved)
		}
	}
	return t
}

func dropsTable(s sidecar.Status) *console.Table {
	t := &console.Table{}
	t.Row("DIRECTION", "DROPPED BECAUSE", "PACKETS")
	for _, reason := range slices.Sorted(maps.Keys(s.Egress)) {
		t.Row("egress", reason, s.Egress[reason])
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Ingress)) {
		t.Row("ingress", reason, s.Ingress[reason])
	}
	return t
}

func sandboxesTable(l sidecar.Listing) *console.Table {
	t := &console.Table{}
	t.Row("SANDBOX", "NETWORK", "INNER ADDRESS", "PAIR ADDRESS", "STATE", "SENT", "RECEIVED", "PASSIVE", "PASSIVE NETWORK", "WHY NOT READY")
	for _, b := range l.Sandboxes {
		passive := b.Passive.Network
		if b.Passive.Region != "" {
			passive += " in " + b.Passive.Region
		}
		t.Row(b.ID, b.Network, addressText(b.Inner), addressText(b.Egress), sandboxState(b), trafficText(b.Sent), trafficText(b.Received), b.Passive.State, passive, b.Passive.Reason)
	}
	return t
}

// sandboxState says also what is unusual about a sandbox.
func sandboxState(b sidecar.SandboxStatus) string {
	switch {
	case b.Bypass != "":
		return b.State + ", bypass: " + b.Bypass
	case b.Proxied:
		return b.State + ", proxied"
	}
	return b.State
}

// alike are sandboxes that are counted together.
type alike struct{ network, state, passive string }

// countsTable counts sandboxes instead of listing them.
func countsTable(l sidecar.Listing) *console.Table {
	counts := make(map[alike]int)
	for _, b := range l.Sandboxes {
		counts[alike{b.Network, sandboxState(b), b.Passive.State}]++
	}
	t := &console.Table{}
	t.Row("NETWORK", "STATE", "PASSIVE", "SANDBOXES")
	for _, k := range slices.SortedFunc(maps.Keys(counts), func(a, b alike) int {
		return cmp.Or(cmp.Compare(a.network, b.network), cmp.Compare(a.state, b.state), cmp.Compare(a.passive, b.passive))
	}) {
		t.Row(k.network, k.state, k.passive, counts[k])
	}
	return t
}

// reasonsTable counts the reasons why passive networks are not ready, those of the
// most sandboxes first.
func reasonsTable(l sidecar.Listing) *console.Table {
	counts, rest := make(map[string]int), 0
	for _, b := range l.Sandboxes {
		if b.Passive.Reason != "" {
			counts[b.Passive.Reason]++
		}
	}
	t := &console.Table{}
	t.Row("SANDBOXES", "PASSIVE NETWORK NOT READY BECAUSE")
	for i, why := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	}) {
		if i < listedReasons {
			t.Row(counts[why], why)
		} else {
			rest += counts[why]
		}
	}
	if rest > 0 {
		t.Row(rest, "of other reasons, which --all lists")
	}
	return t
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateTime)
}

// agoText says how long ago something was.
func agoText(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return fmt.Sprintf("%v ago", shortly(max(0, now.Sub(t))))
}

// shortly is a duration as precise as somebody reads it.
func shortly(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

func rttText(micros int64) string {
	if micros == 0 { // there was no answer yet
		return ""
	}
	return fmt.Sprintf("%.1f ms", float64(micros)/1000)
}

// healthText names the bits that a gateway reported.
func healthText(h packet.Health) string {
	var said []string
	for _, bit := range []struct {
		health packet.Health
		text   string
	}{
		{packet.HealthUplinkLost, "uplink lost"}, {packet.HealthDraining, "draining"}, {packet.HealthFull, "full"},
	} {
		if h&bit.health != 0 {
			said = append(said, bit.text)
		}
		h &^= bit.health
	}
	if h != 0 {
		said = append(said, fmt.Sprintf("unknown %#x", uint8(h)))
	}
	return cmp.Or(strings.Join(said, ", "), "ok")
}

func trafficText(t spec.Traffic) string {
	return fmt.Sprintf("%d (%s)", t.Packets, bytesText(t.Bytes))
}

// bytesText is a number of bytes in the unit in which it is short.
func bytesText(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for ; v >= 999.95; i++ {
		v /= 1000
	}
	return fmt.Sprintf("%.1f %cB", v, units[i])
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func endpointText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
