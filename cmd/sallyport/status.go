package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/console"
)

func statusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show regions, hosts and networks, sessions, site tunnels, bypasses and drops",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.call(cmd, func(ctx context.Context, c *api.Client) error {
				s, err := c.Status(ctx)
				if err != nil {
					return explain(err)
				}
				if g.output == "json" {
					return console.JSON(cmd.OutOrStdout(), s)
				}
				return printStatus(cmd.OutOrStdout(), s)
			})
		},
	}
}

// printStatus prints the status as tables with blank lines between them.
func printStatus(w io.Writer, s api.Status) error {
	head := &console.Table{}
	head.Row("REGION", s.Region)
	head.Row("REVISION", s.Revision)
	head.Row("ATTACHMENTS", s.Attachments)
	for _, reason := range slices.Sorted(maps.Keys(s.BypassesTotal)) {
		head.Row("BYPASS: "+reason, fmt.Sprintf("%d now, %d since the start", s.Bypasses[reason], s.BypassesTotal[reason]))
	}
	return console.PrintAll(w, head, hostsTable(s), networksTable(s), keysTable(s), sitesTable(s), dropsTable(s))
}

func hostsTable(s api.Status) *console.Table {
	t := &console.Table{}
	t.Row("REGION", "POOL", "HOST", "ENDPOINT", "REVISION", "LAST REPORT (UTC)", "STATE")
	for _, r := range s.Regions {
		for _, h := range r.Hosts {
			if r.Name != s.Region { // those of other regions report elsewhere
				t.Row(r.Name, cidrsText(r.Pool), h.Name, h.Endpoint, "", "", "")
				continue
			}
			t.Row(r.Name, cidrsText(r.Pool), h.Name, h.Endpoint, h.Revision, timeText(h.Reported), hostState(h))
		}
	}
	return t
}

// hostState says what is unusual about a host.
func hostState(h api.HostStatus) string {
	switch {
	case h.SilentSeconds > 0 && h.Draining:
		return fmt.Sprintf("ended %d s ago", h.SilentSeconds)
	case h.SilentSeconds > 0:
		return fmt.Sprintf("silent for %d s", h.SilentSeconds)
	}
	return flagText(h.Draining, "draining")
}

// flagText is what a flag says when it is set.
func flagText(set bool, text string) string {
	if set {
		return text
	}
	return ""
}

func networksTable(s api.Status) *console.Table {
	t := &console.Table{}
	t.Row("NETWORK", "TEAM", "CIDR", "ATTACHED", "PAIR", "SESSIONS", "PACKETS OUT", "PACKETS IN", "WRONG SOURCE")
	for _, n := range s.Networks {
		var sessions [2]int
		var draining [2]bool
		var out, in, wrong uint64
		for _, h := range n.Hosts {
			sessions[0] += h.Sessions[0]
			sessions[1] += h.Sessions[1]
			draining[0], draining[1] = draining[0] || h.Draining[0], draining[1] || h.Draining[1]
			out, in, wrong = out+h.Egress.Packets, in+h.Ingress.Packets, wrong+h.WrongSource
		}
		t.Row(titled(n.ID, n.Name), n.Team, n.CIDR, n.Attachments, drainText(n.Pair, draining), fmt.Sprintf("%d, %d", sessions[0], sessions[1]), out, in, wrong)
	}
	return t
}

// drainText is a pair, with a word about an address that is drained.
func drainText(pair [2]netip.Addr, draining [2]bool) string {
	text := pairText(pair)
	for i, a := range pair {
		if draining[i] {
			text += fmt.Sprintf(" (%v draining)", a)
		}
	}
	return text
}

func keysTable(s api.Status) *console.Table {
	t := &console.Table{}
	t.Row("NETWORK", "HOST", "ENDPOINT", "UPLINK", "PEERS", "PUBLIC KEY")
	for _, n := range s.Networks {
		for _, h := range n.Hosts {
			t.Row(titled(n.ID, n.Name), h.Host, endpointText(h.Endpoint), uplinkText(h.NetworkReport), h.Peers, h.PublicKey)
		}
	}
	return t
}

// uplinkText is a host's far side of a network: its kind, and whether what leaves comes
// back, where health.targets are there to find that out.
func uplinkText(r spec.NetworkReport) string {
	state := "unchecked"
	switch {
	case r.UplinkLost:
		state = "lost"
	case r.Uplink == "":
		return "" // a host that does not say
	case r.UplinkChecked:
		state = "up"
	}
	return strings.TrimSpace(r.Uplink + " " + state)
}

// sitesTable lists the networks with a site tunnel or a peering connection.
func sitesTable(s api.Status) *console.Table {
	t := &console.Table{}
	t.Row("NETWORK", "PEERINGS", "SITE HOST", "SITE ENDPOINT", "FOREIGN SOURCE", "SITE PUBLIC KEY")
	for _, n := range s.Networks {
		var counts []string
		for _, state := range slices.Sorted(maps.Keys(n.Peerings)) {
			counts = append(counts, fmt.Sprintf("%d %s", n.Peerings[state], state))
		}
		peerings, reported := strings.Join(counts, ", "), false
		for _, h := range n.Hosts {
			if h.Site == nil {
				continue
			}
			reported = true
			foreign, down, counts := uint64(0), 0, counts
			for _, p := range h.Site.Peerings {
				foreign += p.Foreign
				if p.Trouble != "" {
					down++
				}
			}
			if down > 0 {
				counts = append(slices.Clone(counts), fmt.Sprintf("%d down", down))
			}
			t.Row(titled(n.ID, n.Name), strings.Join(counts, ", "), h.Host, endpointText(h.Site.Endpoint), foreign, h.Site.PublicKey)
		}
		if !reported && peerings != "" {
			t.Row(titled(n.ID, n.Name), peerings, "", "", "", "")
		}
	}
	return t
}

func endpointText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func dropsTable(s api.Status) *console.Table {
	t := &console.Table{}
	t.Row("NETWORK", "DROPPED BECAUSE", "PACKETS")
	for _, n := range s.Networks {
		sum := make(map[string]uint64)
		for _, h := range n.Hosts {
			for reason, count := range h.Drops {
				sum[reason] += count
			}
		}
		for _, reason := range slices.Sorted(maps.Keys(sum)) {
			if sum[reason] > 0 {
				t.Row(titled(n.ID, n.Name), reason, sum[reason])
			}
		}
	}
	return t
}
