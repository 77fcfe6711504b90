package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/gateway/readout"
	"github.com/sallyport-net/sallyport/internal/console"
)

// sessionsQuery is which sessions are asked for.
type sessionsQuery struct {
	admin                       adminListener
	network, inner, destination string
	limit                       int
	all                         bool
}

func sessionsCommand(g *globals) *cobra.Command {
	var q sessionsQuery
	cmd := &cobra.Command{
		Use:   "sessions NETWORK [--inner IP] [--destination IP:PORT] [--limit N | --all]",
		Short: "List a network's sessions on this gateway host",
		Long: `List a network's sessions on this gateway host, in no order, as they come from the
daemon: page by page, so that all of a busy network take time and no memory. What comes
and goes meanwhile may or may not be listed. EXPIRES IN is when a session goes if nothing
more is heard of it.

It asks the admin listener (admin.listen) of the sallyportd on this machine, and needs
no token. --output json prints one session a line, each a document of its own.`,
		Example: "  sallyport sessions net_acme --destination 192.0.2.80:5432\n  sallyport sessions net_acme --inner 10.20.7.7 --all --output json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.network = args[0]
			if q.all && cmd.Flags().Changed("limit") {
				return errors.New("--all and --limit contradict each other; leave out one of them")
			}
			return q.run(cmd, g)
		},
	}
	q.admin.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&q.inner, "inner", "", "`IP` of a sandbox in the network: its sessions alone")
	f.StringVar(&q.destination, "destination", "", "`IP:PORT`: the sessions with it alone; of echoes the port is 0")
	f.IntVar(&q.limit, "limit", 100, "how many at most, from 1")
	f.BoolVar(&q.all, "all", false, "all there are")
	return cmd
}

func (q *sessionsQuery) run(cmd *cobra.Command, g *globals) error {
	asked, err := q.request()
	if err := errors.Join(g.checkOutput(), err); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	n, more, err := q.pages(cmd.Context(), asked, func(page []readout.Session, first bool) error {
		if g.output == "table" {
			return sessionsTable(page, first).Print(out)
		}
		for _, s := range page {
			if err := lines.Encode(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	note := ""
	if more {
		note = "; there may be more: --all lists all, --inner and --destination those of one"
	}
	if g.output == "table" {
		_, err = fmt.Fprintf(out, "\n%d listed%s. Whose an inner address is: `sallyport attachments`.\n", n, note)
	} else if more { // not among the documents
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%d listed%s\n", n, note)
	}
	return err
}

// request checks the flags, so that what is wrong is said in their names.
func (q *sessionsQuery) request() (adminRequest, error) {
	wrong := []error{checkNetwork(q.network)}
	query := url.Values{}
	if q.inner != "" {
		query.Set("inner", q.inner)
		if a, err := netip.ParseAddr(q.inner); err != nil || !a.Is4() {
			wrong = append(wrong, fmt.Errorf("--inner: %q is not an IPv4 address; `sallyport attachments` lists those of sandboxes", q.inner))
		}
	}
	if q.destination != "" {
		query.Set("destination", q.destination)
		wrong = append(wrong, checkDestination(q.destination))
	}
	if q.limit < 1 {
		wrong = append(wrong, fmt.Errorf("--limit: %d cannot be; write 1 or more, or --all instead", q.limit))
	}
	return adminRequest{path: readout.SessionsPath(q.network), query: query}, errors.Join(wrong...)
}

// pages hands on page after page, up to the limit, and says how many sessions these
// were, and whether there may be more.
func (q *sessionsQuery) pages(ctx context.Context, asked adminRequest, print func(page []readout.Session, first bool) error) (n int, more bool, err error) {
	for first := true; ; first = false {
		size := readout.MaxRows
		if !q.all {
			size = min(size, q.limit-n)
		}
		asked.query.Set("limit", strconv.Itoa(size))
		var page readout.Sessions
		if err := q.admin.read(ctx, asked, &page); err != nil {
			return n, true, err
		}
		if page.Network != q.network || page.Next != "" && page.Next == asked.query.Get("after") {
			return n, true, fmt.Errorf("%s answers of network %q with next %q, asked for %q after %q; is it sallyportd's admin listener?",
				q.admin.address, page.Network, page.Next, q.network, asked.query.Get("after"))
		}
		if err := print(page.Sessions, first); err != nil {
			return n, true, err
		}
		if n += len(page.Sessions); page.Next == "" || !q.all && n >= q.limit {
			return n, page.Next != "", nil
		}
		asked.query.Set("after", page.Next)
	}
}

// sessionsTable is one page. Its columns have the widths of the longest that may be in
// them, so that those of the next page stand below.
func sessionsTable(page []readout.Session, title bool) *console.Table {
	t := &console.Table{}
	row := func(protocol, inner, external, remote, state, age, expires any) {
		t.Row(fmt.Sprintf("%-8v", protocol), fmt.Sprintf("%-21v", inner), fmt.Sprintf("%-21v", external), fmt.Sprintf("%-21v", remote),
			fmt.Sprintf("%-11v", state), fmt.Sprintf("%-8v", age), expires)
	}
	if title {
		row("PROTOCOL", "INNER", "EXTERNAL", "REMOTE", "STATE", "AGE (s)", "EXPIRES IN (s)")
	}
	for _, s := range page {
		row(s.Protocol, s.Inner, s.External, s.Remote, s.State, s.Age, s.Expires)
	}
	return t
}
