package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/console"
)

func peeringCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peering",
		Short: "Show private networks that are reached without translation",
		Long: `Show private networks that are reached without translation.

A connection is of one of three kinds: by the network's site tunnel (wireguard), by
an interface of the host that has the network's site (interface), or with another
network of this installation (network). Only sandboxes begin connections.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(peeringListCommand(g), peeringShowCommand(g))
	return cmd
}

func peeringListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the peering connections of the region's networks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.call(cmd, func(ctx context.Context, c *api.Client) error {
				list, err := c.Peerings(ctx)
				if err != nil {
					return explain(err)
				}
				if g.output == "json" {
					return console.JSON(cmd.OutOrStdout(), list)
				}
				if len(list.Peerings) == 0 {
					_, err := fmt.Fprintln(cmd.OutOrStdout(), "there are no peerings")
					return err
				}
				return peeringsTable(list.Peerings).Print(cmd.OutOrStdout())
			})
		},
	}
}

func peeringShowCommand(g *globals) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "show ID [--format FORMAT]",
		Short: "Show one peering connection, or what its other side has to configure",
		Long: `Show one peering connection, with the routes that its other side needs, or
what a WireGuard there has to configure.

For connections of kind wireguard: with --format wg-quick the text is a configuration for the machine that is the
other side of the tunnel, any stock WireGuard: save it there as
/etc/wireguard/NAME.conf. It holds no private key; its comments say where that
one goes, and which routes are needed.`,
		Example: "  sallyport peering show peer_warehouse --format wg-quick > sallyport.conf",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := g.checkFormat(format); err != nil {
				return err
			}
			if !spec.ValidID(args[0]) {
				return fmt.Errorf("%q is not the ID of a peering; `sallyport peering list` lists them", args[0])
			}
			return g.call(cmd, func(ctx context.Context, c *api.Client) error {
				p, err := c.Peering(ctx, args[0])
				if err != nil {
					return explain(err)
				}
				switch {
				case format == formatWGQuick:
					text, err := peeringConfig(p)
					if err != nil {
						return err
					}
					return text.print(cmd.OutOrStdout())
				case g.output == "json":
					return console.JSON(cmd.OutOrStdout(), p)
				}
				return peeringTable(p).Print(cmd.OutOrStdout())
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", formatTable, "`FORMAT` of what is printed: table, or wg-quick for the other side's configuration")
	return cmd
}

func peeringsTable(list []api.PeeringStatus) *console.Table {
	t := &console.Table{}
	t.Row("ID", "NETWORK", "KIND", "BY", "RANGES", "STATE", "SITE HOST", "LAST HANDSHAKE", "PACKETS OUT", "PACKETS IN", "FOREIGN SOURCE")
	for _, p := range list {
		var r spec.PeeringReport
		handshake := ""
		if p.Report != nil {
			r = *p.Report
			if p.By() == spec.ByWireGuard {
				handshake = timeText(r.Handshake)
			}
		}
		t.Row(p.ID, p.Network, p.By(), byText(p), cidrsText(p.Ranges), stateText(p, r.Trouble), p.Host, handshake, r.Egress.Packets, r.Ingress.Packets, r.Foreign)
	}
	return t
}

func peeringTable(p api.PeeringStatus) *console.Table {
	t := &console.Table{}
	t.Row("ID", p.ID)
	t.Row("KIND", p.By())
	t.Row("STATE", p.State)
	if !p.Requested.IsZero() {
		t.Row("REQUESTED", timeText(p.Requested))
	}
	t.Row("NETWORK", p.Network)
	t.Row("NETWORK CIDR", p.NetworkCIDR)
	t.Row("SITE HOST", p.Host)
	switch p.By() {
	case spec.ByInterface:
		t.Row("INTERFACE", p.Interface)
		t.Row("NEXT HOP", addrText(p.NextHop))
		t.Row("THEIR RANGES", cidrsText(p.Ranges))
		where := "all machines on the link of " + p.Interface
		if p.NextHop.IsValid() {
			where = p.NextHop.String()
		}
		t.Row("ROUTE THEY NEED", fmt.Sprintf("%v to the address of host %s on %s, on %s", p.NetworkCIDR, p.Host, p.Interface, where))
	case spec.ByNetwork:
		t.Row("THEIR NETWORK", p.PeerNetwork)
		if p.Awaits != "" {
			t.Row("TO BE ACCEPTED BY", fmt.Sprintf("network %s, in its acceptedPeerings: {peering: %s, network: %s}", p.Awaits, p.ID, p.Network))
		}
		t.Row("THEIR RANGES", cidrsText(p.Ranges))
		t.Row("ROUTE THEY NEED", "none")
	default:
		t.Row("SITE ENDPOINT", endpointText(p.SiteEndpoint))
		t.Row("SITE PUBLIC KEY", p.SitePublicKey)
		t.Row("THEIR RANGES", cidrsText(p.Ranges))
		t.Row("THEIR ENDPOINT", endpointText(p.Endpoint))
		t.Row("THEIR PUBLIC KEY", p.PublicKey)
		t.Row("ROUTE THEY NEED", fmt.Sprintf("%v to their side of the tunnel", p.NetworkCIDR))
	}
	if r := p.Report; r != nil {
		if p.By() == spec.ByWireGuard {
			t.Row("LAST HANDSHAKE", timeText(r.Handshake))
		}
		t.Row("PACKETS OUT", r.Egress.Packets)
		t.Row("PACKETS IN", r.Ingress.Packets)
		t.Row("FOREIGN SOURCE", r.Foreign)
		if r.Trouble != "" {
			t.Row("DOWN", r.Trouble)
		}
	}
	return t
}

// stateText is a connection's state, with a word where nothing can pass.
func stateText(p api.PeeringStatus, trouble string) string {
	switch {
	case p.Awaits != "":
		return string(p.State) + " by " + p.Awaits
	case trouble != "":
		return string(p.State) + ", down"
	}
	return string(p.State)
}

// byText is what a connection passes by, in a word.
func byText(p api.PeeringStatus) string {
	switch {
	case p.By() == spec.ByNetwork:
		return p.PeerNetwork
	case p.By() == spec.ByInterface && p.NextHop.IsValid():
		return fmt.Sprintf("%s via %v", p.Interface, p.NextHop)
	}
	return p.Interface
}

func cidrsText(list []netip.Prefix) string {
	text := make([]string, len(list))
	for i, p := range list {
		text[i] = p.String()
	}
	return strings.Join(text, ", ")
}

// timeText is a time in UTC, and never for none.
func timeText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.DateTime)
}
