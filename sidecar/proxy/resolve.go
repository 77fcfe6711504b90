package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	dnsPort = 53
	// dnsSize is the largest answer in bytes that is taken in a datagram: what fits
	// into any path (DNS flag day 2020).
	dnsSize = 1232
	// dnsRounds is how often each name server is asked.
	dnsRounds = 2
	// maxAddresses is how many addresses of a name are tried.
	maxAddresses = 8
)

// resolver looks names up in the network.
type resolver struct {
	network Network
	servers []netip.Addr
	timeout time.Duration // of one question
}

// lookup finds the IPv4 addresses of a name: one to maxAddresses.
func (r *resolver) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if _, ok := dns.IsDomainName(name); !ok || name == "" || strings.ContainsAny(name, "\\ \t\r\n\x00") {
		return nil, fmt.Errorf("look %q up: not a name: %w", name, errNoName)
	}
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	query.SetEdns0(dnsSize, false)
	var failure error
	for range dnsRounds {
		for _, server := range r.servers {
			reply, err := r.ask(ctx, server, query)
			if err == nil {
				found, final, err := judge(reply)
				if final {
					if err != nil {
						err = fmt.Errorf("look %s up: %w", name, err)
					}
					return found, err
				}
				failure = fmt.Errorf("name server %v: %w", server, err)
			} else {
				failure = fmt.Errorf("ask name server %v: %w", server, err)
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("look %s up: %w", name, errors.Join(ctx.Err(), failure))
			}
		}
	}
	return nil, fmt.Errorf("look %s up: %w", name, failure)
}

// judge reads an answer, and says whether it settles the question. The name
// servers are recursive: what is asked for and its aliases stand in one answer.
func judge(reply *dns.Msg) (found []netip.Addr, final bool, err error) {
	switch reply.Rcode {
	case dns.RcodeSuccess:
	case dns.RcodeNameError:
		return nil, true, errNoName
	default:
		return nil, false, fmt.Errorf("it answers %s", dns.RcodeToString[reply.Rcode])
	}
	for _, rr := range reply.Answer {
		a, ok := rr.(*dns.A)
		if !ok || len(found) == maxAddresses {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
			found = append(found, addr)
		}
	}
	if len(found) == 0 {
		return nil, true, fmt.Errorf("it has no IPv4 address: %w", errNoName)
	}
	return found, true, nil
}

// ask asks one server, by TCP when the answer does not fit into a datagram.
func (r *resolver) ask(ctx context.Context, server netip.Addr, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	to := netip.AddrPortFrom(server, dnsPort)
	conn, err := r.network.DialUDP(to)
	if err != nil {
		return nil, err
	}
	reply, err := exchange(ctx, conn, query)
	if err != nil || !reply.Truncated {
		return reply, err
	}
	stream, err := r.network.DialTCP(ctx, to)
	if err != nil {
		return nil, err
	}
	return exchange(ctx, stream, query)
}

// exchange sends a question and waits for its answer, in a datagram where the
// connection is a [net.PacketConn]. It closes the connection.
func exchange(ctx context.Context, conn net.Conn, query *dns.Msg) (*dns.Msg, error) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	c := &dns.Conn{Conn: conn, UDPSize: dnsSize}
	if err := c.WriteMsg(query); err != nil {
		return nil, err
	}
	_, datagrams := conn.(net.PacketConn)
	for {
		reply, err := c.ReadMsg()
		var broken net.Error
		switch {
		case err == nil && answers(reply, query):
			return reply, nil
		case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &broken), !datagrams && err != nil:
			return nil, err
		case !datagrams:
			return nil, errors.New("the answer is to another question")
		}
		// A datagram that is no answer may be anybody's; the right one may follow.
	}
}

// answers says whether a message is the answer to a question.
func answers(reply, query *dns.Msg) bool {
	return reply.Response && reply.Id == query.Id && len(reply.Question) == 1 &&
		reply.Question[0].Qtype == query.Question[0].Qtype && strings.EqualFold(reply.Question[0].Name, query.Question[0].Name)
}
