package service

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// retryAfter is how long an upstream that was silent is asked last.
const retryAfter = 30 * time.Second

// errMismatch is an answer to something that was not asked.
var errMismatch = errors.New("answer does not match the question")

// upstream is a server that questions are forwarded to.
type upstream struct {
	addr   netip.AddrPort
	silent atomic.Int64 // Unix nanoseconds until which it is asked last; 0 if it answers
	ports  ports
}

// resolve asks the upstreams in order and returns the answer for the client. An upstream
// that refuses or fails is passed over, but its answer is kept in case no other has a better one.
func (s *Services) resolve(ctx context.Context, query *dns.Msg) *dns.Msg {
	var second *dns.Msg
	for _, u := range s.order(time.Now()) {
		reply, err := s.ask(ctx, u, query)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				s.counters.timeouts.Add(1)
				u.silent.Store(time.Now().Add(retryAfter).UnixNano())
			}
			continue
		}
		u.silent.Store(0)
		if reply.Rcode != dns.RcodeServerFailure && reply.Rcode != dns.RcodeRefused {
			return fitAnswer(query, reply)
		}
		if second == nil {
			second = reply
		}
	}
	if second != nil {
		return fitAnswer(query, second)
	}
	s.counters.failures.Add(1)
	return fitAnswer(query, new(dns.Msg).SetRcode(query, dns.RcodeServerFailure))
}

// order returns the upstreams in the configured order, those that were silent lately at the end.
func (s *Services) order(now time.Time) []*upstream {
	order := make([]*upstream, 0, len(s.upstream))
	for _, silent := range []bool{false, true} {
		for _, u := range s.upstream {
			if (u.silent.Load() > now.UnixNano()) == silent {
				order = append(order, u)
			}
		}
	}
	return order
}

// ask puts the question to one upstream: over UDP, and again over TCP when the answer was cut.
func (s *Services) ask(ctx context.Context, u *upstream, query *dns.Msg) (*dns.Msg, error) {
	question := fitQuestion(query)
	reply, err := s.askUDP(ctx, u, question)
	if err != nil || !reply.Truncated {
		return reply, err
	}
	s.counters.retried.Add(1)
	whole, err := s.askTCP(ctx, u, question)
	if err != nil {
		return reply, nil // the client gets the cut one and may ask over TCP itself
	}
	return whole, nil
}

// askUDP sends the question from a random port of the network's first address
// and once more after half of the time: one lost datagram must not cost the whole wait.
func (s *Services) askUDP(ctx context.Context, u *upstream, question *dns.Msg) (*dns.Msg, error) {
	b, err := question.Pack()
	if err != nil {
		return nil, err
	}
	conn, err := s.portTo(u, time.Now())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	reply, err := s.exchange(conn, b, question)
	if stop() {
		// Answers that come too late are dropped by the next question.
		u.ports.keep(conn, time.Now())
	}
	return reply, err
}

// exchange sends b, which is the question, and waits for the answer.
func (s *Services) exchange(conn net.Conn, b []byte, question *dns.Msg) (reply *dns.Msg, err error) {
	buf := make([]byte, ednsSize)
	end := time.Now().Add(s.config.Timeout)
	for _, until := range []time.Time{end.Add(-s.config.Timeout / 2), end} {
		if _, err := conn.Write(b); err != nil {
			return nil, err
		}
		_ = conn.SetReadDeadline(until)
		if reply, err = s.await(conn, buf, question); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return reply, err
}

// await reads until the answer comes. Anything else may be an attempt to guess it, and is dropped.
func (s *Services) await(conn net.Conn, buf []byte, question *dns.Msg) (*dns.Msg, error) {
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		reply := new(dns.Msg)
		if reply.Unpack(buf[:n]) == nil && matches(question, reply) {
			return reply, nil
		}
		s.counters.mismatched.Add(1)
	}
}

// askTCP puts the question over TCP.
func (s *Services) askTCP(ctx context.Context, u *upstream, question *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	b, err := question.Pack()
	if err != nil {
		return nil, err
	}
	conn, err := s.device.DialTCP(ctx, netip.AddrPortFrom(s.config.Address, 0), u.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, conn.Abort)()
	if err := writeMessage(conn, b); err != nil {
		return nil, err
	}
	b, err = readMessage(conn)
	if err != nil {
		return nil, err
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(b); err != nil {
		return nil, err
	}
	if !matches(question, reply) {
		s.counters.mismatched.Add(1)
		return nil, errMismatch
	}
	return reply, nil
}

// matches reports whether reply answers question: identifier, and question but
// for the case of its letters.
func matches(question, reply *dns.Msg) bool {
	if !reply.Response || reply.Id != question.Id || reply.Opcode != question.Opcode || len(reply.Question) != 1 {
		return false
	}
	q, r := question.Question[0], reply.Question[0]
	return q.Qtype == r.Qtype && q.Qclass == r.Qclass && strings.EqualFold(q.Name, r.Name)
}

// fitQuestion makes the upstream's question of a client's: the same name, letter
// by letter, with a random identifier and EDNS of our own.
func fitQuestion(query *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired = query.RecursionDesired
	m.CheckingDisabled = query.CheckingDisabled
	m.AuthenticatedData = query.AuthenticatedData
	m.Question = query.Question
	client := query.IsEdns0()
	m.SetEdns0(ednsSize, client != nil && client.Do())
	return m
}

// fitAnswer makes the client's answer of an upstream's: the client's identifier and
// question, and EDNS only if the client speaks it (RFC 6891 section 6.2.6: hop by hop).
func fitAnswer(query, reply *dns.Msg) *dns.Msg {
	reply.Id = query.Id
	reply.Question = query.Question
	reply.RecursionDesired = query.RecursionDesired
	reply.RecursionAvailable = true
	reply.Compress = true
	extra := reply.Extra[:0]
	for _, rr := range reply.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			extra = append(extra, rr)
		}
	}
	reply.Extra = extra
	if opt := query.IsEdns0(); opt != nil {
		reply.SetEdns0(ednsSize, opt.Do())
	} else if reply.Rcode > 0xf {
		reply.Rcode = dns.RcodeServerFailure // an extended code cannot be said without EDNS
	}
	return reply
}
