package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport-net/sallyport/gateway"
	"github.com/sallyport-net/sallyport/gateway/readout"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// Read-outs name customers' addresses and whom they talk to, and the admin listener asks
// for no token. So they are for who is on this machine, whatever the listener's address.
// Whoever comes by a proxy that says so is not, and neither is who comes from another
// address of 127/8: in a region of loopback addresses that is a sandbox.
func local(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !fromHere(r) || !byOurName(r) {
			http.Error(w, "read-outs name customers' addresses: ask on the gateway host itself, by its loopback address, not by a name, and by no proxy", http.StatusForbidden)
			return
		}
		next(w, r)
	}
}

// byOurName reports whether the caller asked for an address or localhost. A browser on
// this machine may have been sent here under somebody else's name.
func byOurName(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	_, err = netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "" || host == "localhost"
}

// fromHere reports whether a program on this machine asks by itself.
func fromHere(r *http.Request) bool {
	for _, by := range [...]string{"Forwarded", "Via", "X-Forwarded-For", "X-Real-Ip"} {
		if len(r.Header.Values(by)) > 0 {
			return false
		}
	}
	if at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && at.Network() == "unix" {
		return true
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	a := from.Addr().Unmap()
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 1}) || a == netip.IPv6Loopback()
}

func readPorts(host *gateway.Host) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := parameters{values: r.URL.Query()}
		query := gateway.PortsQuery{
			Network: r.PathValue("network"), Protocol: q.protocol("protocol"),
			Destination: q.endpoint("destination"), Top: q.number("top"),
		}
		if r.URL.Query().Has("protocol") && !query.Destination.IsValid() {
			q.refuse("protocol", r.URL.Query().Get("protocol"), "the destination, too, whose users are asked for")
		}
		if err := q.end(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := host.Ports(r.Context(), query)
		respond(w, out, err)
	}
}

func readSessions(host *gateway.Host) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := parameters{values: r.URL.Query()}
		query := gateway.SessionsQuery{
			Network: r.PathValue("network"), Inner: q.address("inner"),
			Destination: q.endpoint("destination"), After: q.cursor("after"), Limit: q.number("limit"),
		}
		if err := q.end(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		page, err := host.Sessions(r.Context(), query)
		out := readout.Sessions{Network: query.Network, Sessions: page.Sessions}
		if page.More {
			out.Next = fmt.Sprintf("%d.%d", page.Next.Side, page.Next.Record)
		}
		respond(w, out, err)
	}
}

// respond writes a read-out, or what kept it.
func respond(w http.ResponseWriter, out any, err error) {
	switch {
	case errors.Is(err, gateway.ErrNotServed):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // who asked may have gone
	}
}

// parameters reads a query; what is wrong with it, end tells.
type parameters struct {
	values url.Values
	wrong  []error
}

func (p *parameters) take(name string) string {
	v := p.values.Get(name)
	if n := len(p.values[name]); n > 1 {
		p.wrong = append(p.wrong, fmt.Errorf("%s: it is there %d times: write it once", name, n))
	}
	p.values.Del(name)
	return v
}

func (p *parameters) refuse(name, v, want string) {
	p.wrong = append(p.wrong, fmt.Errorf("%s: %q: write %s", name, v, want))
}

func (p *parameters) number(name string) int {
	v := p.take(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > readout.MaxRows {
		p.refuse(name, v, fmt.Sprintf("a number from 1 to %d", readout.MaxRows))
	}
	return n
}

func (p *parameters) endpoint(name string) (to netip.AddrPort) {
	v := p.take(name)
	if v == "" {
		return to
	}
	to, err := netip.ParseAddrPort(v)
	if err != nil || !to.Addr().Is4() {
		p.refuse(name, v, "an IPv4 address and port, such as 192.0.2.5:5432, and port 0 for echoes")
	}
	return to
}

func (p *parameters) address(name string) (a netip.Addr) {
	v := p.take(name)
	if v == "" {
		return a
	}
	a, err := netip.ParseAddr(v)
	if err != nil || !a.Is4() {
		p.refuse(name, v, "an IPv4 address")
	}
	return a
}

func (p *parameters) protocol(name string) packet.Proto {
	switch v := p.take(name); v {
	case "", "tcp":
		return packet.TCP
	case "udp":
		return packet.UDP
	case "icmp":
		return packet.ICMP
	default:
		p.refuse(name, v, "tcp, udp or icmp")
		return 0
	}
}

func (p *parameters) cursor(name string) (c gateway.SessionCursor) {
	v := p.take(name)
	if v == "" {
		return c
	}
	side, record, _ := strings.Cut(v, ".")
	a, err := strconv.ParseUint(side, 10, 1)
	b, err2 := strconv.ParseUint(record, 10, 32)
	if err != nil || err2 != nil {
		p.refuse(name, v, "next of the page before")
	}
	return gateway.SessionCursor{Side: int(a), Record: uint32(b)}
}

// end reports all that was wrong, parameters that nobody asked for included.
func (p *parameters) end() error {
	for _, name := range slices.Sorted(maps.Keys(p.values)) {
		p.wrong = append(p.wrong, fmt.Errorf("%q: there is no such parameter", name))
	}
	return errors.Join(p.wrong...)
}
