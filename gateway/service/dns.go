package service

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/sallyport-net/sallyport/internal/netstack"
)

const (
	// ednsSize is the UDP size announced both ways: it fits into one packet on
	// every path worth using, so that no answer comes in fragments.
	ednsSize = 1232
	// ipUDPHeaders is what stands around a message in a packet.
	ipUDPHeaders = 28
	// tcpIdle is how long a connection may stay without a question (RFC 7766
	// section 6.2.3 asks for the order of seconds).
	tcpIdle = 10 * time.Second
	// tcpWrite bounds the sending of one answer to a client that does not read.
	tcpWrite = 5 * time.Second
	// maxConns and maxClientConns bound the TCP connections, in total and of one address.
	maxConns, maxClientConns = 256, 32
)

// serveUDP answers questions that come over UDP until the socket is closed.
func (s *Services) serveUDP(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	buf := make([]byte, s.config.MTU)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		if !s.answers(from) {
			s.counters.refused.Add(1)
			continue
		}
		query, ok := s.parse(buf[:n])
		if !ok {
			continue
		}
		send := func(answer *dns.Msg) { s.sendUDP(query, answer, from) }
		if answer := s.screen(query); answer != nil {
			send(answer)
			continue
		}
		if !s.queries.enter(from.Addr()) {
			send(s.overload(query))
			continue
		}
		running.Go(func() {
			defer s.queries.leave(from.Addr())
			send(s.resolve(ctx, query))
		})
	}
}

// sendUDP sends an answer, cut to what the client takes.
func (s *Services) sendUDP(query, answer *dns.Msg, to netip.AddrPort) {
	size := dns.MinMsgSize
	if opt := query.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
	}
	answer.Truncate(min(size, s.config.MTU-ipUDPHeaders))
	// Whether a datagram arrives nobody knows; a client asks again.
	_, _ = s.udp.WriteToUDPAddrPort(s.pack(query, answer), to)
}

// serveTCP answers questions that come over TCP until the listener is closed.
func (s *Services) serveTCP(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return err
		}
		conn := c.(*netstack.Conn)
		from := conn.RemoteAddrPort()
		switch {
		case !s.answers(from):
			s.counters.refused.Add(1)
			conn.Abort()
		case !s.conns.enter(from.Addr()):
			s.counters.overloaded.Add(1)
			conn.Abort()
		default:
			running.Go(func() {
				defer s.conns.leave(from.Addr())
				s.serveConn(ctx, conn)
			})
		}
	}
}

// serveConn answers the questions of one connection, several at a time and in
// whatever order they are done (RFC 7766 section 6.2.1.1).
func (s *Services) serveConn(ctx context.Context, conn *netstack.Conn) {
	var running sync.WaitGroup
	var writing sync.Mutex
	defer conn.Close()
	defer running.Wait()
	stop := context.AfterFunc(ctx, conn.Abort)
	defer stop()
	from := conn.RemoteAddrPort().Addr()
	for {
		_ = conn.SetReadDeadline(time.Now().Add(tcpIdle))
		message, err := readMessage(conn)
		if err != nil {
			return // the client has ended, or was silent for too long
		}
		query, ok := s.parse(message)
		if !ok {
			return
		}
		send := func(answer *dns.Msg) {
			b := s.pack(query, answer)
			writing.Lock()
			defer writing.Unlock()
			_ = conn.SetWriteDeadline(time.Now().Add(tcpWrite))
			if writeMessage(conn, b) != nil {
				conn.Abort()
			}
		}
		if answer := s.screen(query); answer != nil {
			send(answer)
			continue
		}
		if !s.queries.enter(from) {
			send(s.overload(query))
			continue
		}
		running.Go(func() {
			defer s.queries.leave(from)
			send(s.resolve(ctx, query))
		})
	}
}

// parse reads a question. What is none gets no answer: answering it could start two servers talking.
func (s *Services) parse(b []byte) (*dns.Msg, bool) {
	query := new(dns.Msg)
	if err := query.Unpack(b); err != nil && len(b) < headerSize || query.Response {
		s.counters.malformed.Add(1)
		return nil, false
	} else if err != nil {
		query.Question = nil // of a broken message only the header counts; screen refuses it
	}
	s.counters.queries.Add(1)
	return query, true
}

// headerSize is the length of a DNS message's header (RFC 1035 section 4.1.1).
const headerSize = 12

// screen returns the answer to a question that is not forwarded, and nil for one that is.
func (s *Services) screen(query *dns.Msg) *dns.Msg {
	answer := func(rcode int) *dns.Msg { return fitAnswer(query, new(dns.Msg).SetRcode(query, rcode)) }
	switch {
	case query.Opcode != dns.OpcodeQuery:
		return answer(dns.RcodeNotImplemented)
	case len(query.Question) != 1:
		return answer(dns.RcodeFormatError)
	case query.Question[0].Qtype == dns.TypeAXFR || query.Question[0].Qtype == dns.TypeIXFR:
		return answer(dns.RcodeRefused)
	}
	if opt := query.IsEdns0(); opt != nil && opt.Version() != 0 {
		return answer(dns.RcodeBadVers)
	}
	return nil
}

// overload returns the answer to a question for which there is no place.
func (s *Services) overload(query *dns.Msg) *dns.Msg {
	s.counters.overloaded.Add(1)
	return fitAnswer(query, new(dns.Msg).SetRcode(query, dns.RcodeServerFailure))
}

// pack encodes an answer and counts it. What an upstream sent and cannot be
// encoded becomes SERVFAIL.
func (s *Services) pack(query, answer *dns.Msg) []byte {
	b, err := answer.Pack()
	if err != nil {
		// A question that was decoded can be encoded; if it were not, the client gets nothing useful.
		answer = new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
		b, _ = answer.Pack()
	}
	s.counters.rcodes[min(answer.Rcode, rcodes-1)].Add(1)
	return b
}

// readMessage reads one message with its length before it (RFC 1035 section 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// writeMessage writes one message with its length before it, in one piece.
func writeMessage(w io.Writer, b []byte) error {
	if len(b) > dns.MaxMsgSize {
		return errors.New("message too long for TCP")
	}
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b)))
	_, err := w.Write(append(framed, b...))
	return err
}
