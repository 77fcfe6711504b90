package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/readout"
	"github.com/sallyport-net/sallyport/internal/console"
)

// portsQuery is whose ports are asked for.
type portsQuery struct {
	admin                          adminListener
	network, destination, protocol string
	top                            int
	names                          bool
}

func portsCommand(g *globals) *cobra.Command {
	var q portsQuery
	cmd := &cobra.Command{
		Use:   "ports NETWORK [--destination IP:PORT [--protocol tcp|udp|icmp]] [--top N] [--names]",
		Short: "Say who uses a network's external ports on this gateway host, and how many are left",
		Long: `Say who uses a network's external ports on this gateway host, and how many are left:
for each dedicated IP that it holds, the busiest destinations, and the sandboxes with
the most ports. --destination tells of one destination besides, and who uses it.

TCP ports count for each destination by itself; those of UDP, and the identifiers of
echoes (icmp), for all together. Ports held are free, and not given out yet: the busiest
destinations are those with the most ports used and held together. The two IPs of a
network may be on two hosts: each tells of its own.

It asks the admin listener (admin.listen) of the sallyportd on this machine, and needs
no token for that; --names asks the control API for the sandboxes' projects.
--output json prints the daemon's answer as one document.`,
		Example: "  sallyport ports net_acme\n  sallyport ports net_acme --destination 192.0.2.80:5432 --names",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.network = args[0]
			return q.run(cmd, g)
		},
	}
	q.admin.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&q.destination, "destination", "", "`IP:PORT` whose users are told, too; of echoes the port is 0")
	f.StringVar(&q.protocol, "protocol", "tcp", "`PROTOCOL` of the destination: tcp, udp or icmp")
	f.IntVar(&q.top, "top", 10, fmt.Sprintf("rows of each list, 1 to %d", readout.MaxRows))
	f.BoolVar(&q.names, "names", false, "say whose the inner addresses are; not in JSON")
	return cmd
}

func (q *portsQuery) run(cmd *cobra.Command, g *globals) error {
	asked, err := q.request(cmd.Flags().Changed("protocol"))
	if err := errors.Join(g.checkOutput(), err); err != nil {
		return err
	}
	if q.names && g.output == "json" {
		return errors.New("--names is for tables; with --output json leave it out, and take `sallyport attachments --output json`")
	}
	var p readout.Ports
	if err := q.admin.read(cmd.Context(), asked, &p); err != nil {
		return err
	}
	if p.Network != q.network {
		return fmt.Errorf("%s answers of network %q, asked for %q; is it sallyportd's admin listener?", q.admin.address, p.Network, q.network)
	}
	if g.output == "json" {
		return console.JSON(cmd.OutOrStdout(), p)
	}
	if !q.names {
		return printPorts(cmd.OutOrStdout(), p, nil)
	}
	var whose sandboxes
	err = g.call(cmd, func(ctx context.Context, c *api.Client) error {
		all, err := c.Attachments(ctx)
		whose = sandboxesOf(q.network, all)
		return explain(err)
	})
	if err != nil {
		err = fmt.Errorf("--names: %w", err) // what is known is told all the same
	}
	return errors.Join(printPorts(cmd.OutOrStdout(), p, whose), err)
}

// request checks the flags, so that what is wrong is said in their names.
func (q *portsQuery) request(protocol bool) (adminRequest, error) {
	var wrong []error
	query := url.Values{"top": {strconv.Itoa(q.top)}}
	if q.top < 1 || q.top > readout.MaxRows {
		wrong = append(wrong, fmt.Errorf("--top: %d cannot be; write 1 to %d", q.top, readout.MaxRows))
	}
	switch q.protocol {
	case "tcp", "udp", "icmp":
	default:
		wrong = append(wrong, fmt.Errorf("--protocol: there is none %q here; write tcp, udp or icmp", q.protocol))
	}
	switch {
	case q.destination != "":
		query.Set("destination", q.destination)
		query.Set("protocol", q.protocol)
		wrong = append(wrong, checkDestination(q.destination), checkEcho(q.destination, q.protocol))
	case protocol:
		wrong = append(wrong, errors.New("--protocol is that of --destination: write that, too, or leave it out"))
	}
	wrong = append(wrong, checkNetwork(q.network))
	return adminRequest{path: readout.PortsPath(q.network), query: query}, errors.Join(wrong...)
}

func checkNetwork(id string) error {
	if !spec.ValidID(id) {
		return fmt.Errorf("%q is not the ID of a network; `sallyport status` lists them", id)
	}
	return nil
}

func checkDestination(s string) error {
	if to, err := netip.ParseAddrPort(s); err != nil || !to.Addr().Is4() {
		return fmt.Errorf("--destination: %q is not an IPv4 address and a port; write it such as 192.0.2.5:5432 (look a name up before), with port 0 for echoes", s)
	}
	return nil
}

// checkEcho refuses what no session can have: echoes have port 0, and nothing else has.
func checkEcho(destination, protocol string) error {
	to, err := netip.ParseAddrPort(destination)
	if err == nil && (to.Port() == 0) != (protocol == "icmp") {
		return fmt.Errorf("--destination %s: echoes are of port 0 and of --protocol icmp, and nothing else is; write the two as they go together", destination)
	}
	return nil
}

// sandboxes say whose an inner address of a network is; nil: nobody has asked.
type sandboxes map[netip.Addr]spec.Attachment

func sandboxesOf(network string, all []spec.Attachment) sandboxes {
	by := sandboxes{}
	for _, a := range all {
		if a.Network == network && a.Inner.IsValid() {
			by[a.Inner] = a
		}
	}
	return by
}

// titles and of are columns beside an inner address; none where nobody has asked.
func (s sandboxes) titles() []any {
	if s == nil {
		return nil
	}
	return []any{"PROJECT", "ENVIRONMENT", "KIND"}
}

func (s sandboxes) of(inner netip.Addr) []any {
	if s == nil {
		return nil
	}
	a := s[inner]
	return []any{a.Project, a.Environment, a.Kind}
}

// printPorts prints what was asked for first, then how full each dedicated IP is.
func printPorts(w io.Writer, p readout.Ports, whose sandboxes) error {
	if len(p.IPs) == 0 {
		_, err := fmt.Fprintf(w, "this host holds none of the dedicated IPs of %s; ask on its other host\n", p.Network)
		return err
	}
	tables := []*console.Table{portsTable(p), topTable(p, whose)}
	if p.IPs[0].Destination != nil {
		tables = append([]*console.Table{destinationTable(p), usersTable(p, whose)}, tables...)
	}
	if err := console.PrintAll(w, tables...); err != nil {
		return err
	}
	var notes []string
	if len(p.IPs) == 1 {
		notes = append(notes, "The network's other dedicated IP is not on this host: ask on that one, too.")
	}
	if whose == nil {
		notes = append(notes, "Whose an inner address is: --names, or `sallyport attachments`.")
	}
	if len(notes) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(notes, "\n"))
	return err
}

// ipText is a dedicated IP, with a word where it is drained.
func ipText(u readout.IPPorts) string {
	return strings.TrimSpace(u.IP.String() + " " + flagText(u.Draining, "(draining)"))
}

// destinationTable tells of the destination that was asked for.
func destinationTable(p readout.Ports) *console.Table {
	t := &console.Table{}
	t.Row("DEDICATED IP", "PROTOCOL", "DESTINATION", "PORTS USED", "PORTS HELD", "PORTS LEFT", "SANDBOXES")
	for _, u := range p.IPs {
		if d := u.Destination; d != nil {
			t.Row(ipText(u), d.Protocol, d.Destination, d.Used, d.Held, d.Left, d.Users)
		}
	}
	return t
}

// usersTable lists who has sessions with it.
func usersTable(p readout.Ports, whose sandboxes) *console.Table {
	t := &console.Table{}
	t.Row(append([]any{"DEDICATED IP", "INNER", "SESSIONS THERE"}, whose.titles()...)...)
	for _, u := range p.IPs {
		if u.Destination == nil {
			continue
		}
		for _, s := range u.Destination.Sandboxes {
			t.Row(append([]any{ipText(u), s.Inner, s.Sessions}, whose.of(s.Inner)...)...)
		}
	}
	return t
}

// portsTable lists the busiest destinations, and the ports that serve all of them.
func portsTable(p readout.Ports) *console.Table {
	t := &console.Table{}
	t.Row("DEDICATED IP", "PROTOCOL", "DESTINATION", "PORTS USED", "PORTS HELD", "PORTS LEFT")
	for _, u := range p.IPs {
		for _, b := range u.Busiest {
			t.Row(ipText(u), b.Protocol, b.Destination, b.Used, b.Held, b.Left)
		}
		if n := len(u.Busiest); n > 0 && u.OthersAtMost > 0 { // used and held ports
			last := u.Busiest[n-1]
			t.Row(ipText(u), "tcp", "any other", "", "", fmt.Sprintf("at least %d", last.Used+last.Held+last.Left-u.OthersAtMost))
		}
		for _, s := range u.Shared {
			t.Row(ipText(u), s.Protocol, "all", s.Used, s.Held, s.Left)
		}
	}
	return t
}

// topTable lists the inner addresses with the most ports.
func topTable(p readout.Ports, whose sandboxes) *console.Table {
	t := &console.Table{}
	t.Row(append([]any{"DEDICATED IP", "INNER", "PORTS USED", "SESSIONS", "HALF OPEN", "TCP", "UDP", "ICMP"}, whose.titles()...)...)
	for _, u := range p.IPs {
		for _, s := range u.Sandboxes {
			t.Row(append([]any{ipText(u), s.Inner, s.Ports, s.Sessions, s.HalfOpen, s.TCP, s.UDP, s.ICMP}, whose.of(s.Inner)...)...)
		}
	}
	return t
}
