package service

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestForward(t *testing.T) {
	w := newWorld(t, nil)
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) {
		if opt := q.IsEdns0(); opt == nil || opt.UDPSize() != ednsSize || opt.Do() {
			t.Errorf("upstream got EDNS %v", opt)
		}
		rw.WriteMsg(answerA(q, 2))
	})
	for _, network := range []string{"udp", "tcp"} {
		q := question("MiXed.example.org.")
		r, err := w.ask(network, q)
		if err != nil {
			t.Fatal(err)
		}
		if r.Id != q.Id || r.Rcode != dns.RcodeSuccess || len(r.Answer) != 2 || !r.RecursionAvailable {
			t.Errorf("%s: answer %v", network, r)
		}
		if r.Question[0].Name != "MiXed.example.org." {
			t.Errorf("%s: question came back as %q", network, r.Question[0].Name)
		}
		if r.IsEdns0() != nil {
			t.Errorf("%s: EDNS in the answer to a question without it", network)
		}
	}
	for _, from := range w.sources {
		if from.Addr() != gateway {
			t.Errorf("upstream was asked from %v, want %v", from, gateway)
		}
	}
	if st := w.svc.Stats(); st.Queries != 2 || st.Rcodes[dns.RcodeSuccess] != 2 || st.Failures != 0 {
		t.Errorf("stats %+v", st)
	}
}

// A-9, P-3: each question has a port and an identifier of its own, by chance.
func TestRandomPortsAndIDs(t *testing.T) {
	w := newWorld(t, nil)
	ids := make(map[uint16]bool)
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) {
		w.mu.Lock()
		ids[q.Id] = true
		w.mu.Unlock()
		rw.WriteMsg(answerA(q, 1))
	})
	const n = 40
	for range n {
		q := question("example.org.")
		q.Id = 1
		if _, err := w.ask("udp", q); err != nil {
			t.Fatal(err)
		}
	}
	ports := make(map[uint16]bool)
	for _, from := range w.sources {
		ports[from.Port()] = true
	}
	if len(ids) < n-3 || len(ports) < n-3 {
		t.Errorf("%d questions used %d identifiers and %d ports", n, len(ids), len(ports))
	}
}

// TestManyQuestionsSharePorts asks more than there are new ports for: the dedicated IP
// gives no more of them than that, and still none of them carries a large part.
func TestManyQuestionsSharePorts(t *testing.T) {
	w := newWorld(t, nil)
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) { rw.WriteMsg(answerA(q, 1)) })
	const n = 4 * freshBurst
	began := time.Now()
	for range n {
		if r, err := w.ask("udp", question("example.org.")); err != nil || r.Rcode != dns.RcodeSuccess {
			t.Fatalf("answer %v, %v", r, err)
		}
	}
	most := freshBurst + int(time.Since(began)/freshInterval) + 1
	questions := make(map[uint16]int)
	for _, from := range w.sources {
		questions[from.Port()]++
	}
	if k := len(questions); k > most || k < freshBurst/2 {
		t.Errorf("%d questions from %d ports, want some %d", n, k, freshBurst)
	}
	for port, k := range questions {
		if k > n/8 {
			t.Errorf("%d of %d questions from port %d", k, n, port)
		}
	}
}

// TestPortsAge sees that an idle port is used again only while it is young.
func TestPortsAge(t *testing.T) {
	w := newWorld(t, nil)
	u := &upstream{addr: netip.AddrPortFrom(resolver[0], 53)}
	now := time.Now()
	c, err := w.svc.portTo(u, now)
	if err != nil {
		t.Fatal(err)
	}
	u.ports.keep(c, now.Add(portAge-1))
	if again, ok := u.ports.draw(now.Add(portAge - 1)); !ok || again != c {
		t.Errorf("drew %v, %v; want the port that was kept", again, ok)
	}
	u.ports.keep(c, now.Add(portAge-1))
	if _, ok := u.ports.draw(now.Add(portAge)); ok {
		t.Error("drew an old port")
	}
	if _, err := c.Write([]byte{0}); err == nil {
		t.Error("an old port was not closed")
	}
	for range freshBurst - 1 {
		if !w.svc.fresh.take(now) {
			t.Fatal("fewer new ports than there may be")
		}
	}
	if w.svc.fresh.take(now) || !w.svc.fresh.take(now.Add(freshInterval)) {
		t.Error("new ports are not one for each interval")
	}
}

func TestTruncatedIsAskedOverTCP(t *testing.T) {
	w := newWorld(t, nil)
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) {
		m := answerA(q, 100)
		if rw.RemoteAddr().Network() == "udp" {
			m.Truncate(dns.MinMsgSize)
		}
		rw.WriteMsg(m)
	})
	r, err := w.ask("tcp", question("many.example.org."))
	if err != nil {
		t.Fatal(err)
	}
	if r.Truncated || len(r.Answer) != 100 {
		t.Errorf("over TCP: truncated %v, %d answers", r.Truncated, len(r.Answer))
	}
	// Over UDP the client gets what it says it can take, and the sign to come by TCP.
	r, err = w.ask("udp", question("many.example.org."))
	if err != nil {
		t.Fatal(err)
	}
	r.Compress = true // as it was sent
	if !r.Truncated || r.Len() > dns.MinMsgSize {
		t.Errorf("over UDP: truncated %v, %d bytes", r.Truncated, r.Len())
	}
	q := question("many.example.org.")
	q.SetEdns0(4096, true)
	if r, err = w.ask("udp", q); err != nil {
		t.Fatal(err)
	}
	r.Compress = true
	if opt := r.IsEdns0(); opt == nil || !opt.Do() || !r.Truncated || r.Len() > 1392 {
		t.Errorf("over UDP with EDNS: %v, truncated %v, %d bytes", opt, r.Truncated, r.Len())
	}
	if st := w.svc.Stats(); st.Retried != 3 {
		t.Errorf("retried %d, want 3", st.Retried)
	}
}

func TestUpstreamsInOrder(t *testing.T) {
	for _, tc := range []struct {
		name     string
		first    func(dns.ResponseWriter, *dns.Msg) // nil: nobody listens; the stack says so by ICMP
		timeouts uint64
	}{
		{"silent", func(dns.ResponseWriter, *dns.Msg) {}, 1},
		{"nobody there", nil, 0},
		{"fails", func(rw dns.ResponseWriter, q *dns.Msg) {
			rw.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
		}, 0},
		{"answers something else", func(rw dns.ResponseWriter, q *dns.Msg) {
			m := answerA(q, 1)
			m.Id++
			rw.WriteMsg(m)
			m.Id--
			m.Question[0].Name = "evil.example.org."
			rw.WriteMsg(m)
			rw.Write([]byte{1, 2, 3})
		}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, nil)
			if tc.first != nil {
				w.serve(resolver[0], tc.first)
			}
			w.serve(resolver[1], func(rw dns.ResponseWriter, q *dns.Msg) { rw.WriteMsg(answerA(q, 3)) })
			for range 2 { // the second time a silent one is not waited for
				r, err := w.ask("udp", question("example.org."))
				if err != nil {
					t.Fatal(err)
				}
				if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 3 || r.Question[0].Name != "example.org." {
					t.Errorf("answer %v", r)
				}
			}
			if st := w.svc.Stats(); st.Timeouts != tc.timeouts || st.Failures != 0 {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

func TestNoUpstreamAnswers(t *testing.T) {
	w := newWorld(t, nil)
	w.serve(resolver[0], func(dns.ResponseWriter, *dns.Msg) {})
	r, err := w.ask("udp", question("example.org."))
	if err != nil {
		t.Fatal(err)
	}
	if r.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer %v", r)
	}
	if st := w.svc.Stats(); st.Failures != 1 || st.Rcodes[dns.RcodeServerFailure] != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestRefusalIsPassedOn(t *testing.T) {
	w := newWorld(t, nil)
	for _, a := range resolver {
		w.serve(a, func(rw dns.ResponseWriter, q *dns.Msg) { rw.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused)) })
	}
	r, err := w.ask("udp", question("example.org."))
	if err != nil || r.Rcode != dns.RcodeRefused {
		t.Errorf("answer %v, %v", r, err)
	}
}

func TestNotForwarded(t *testing.T) {
	w := newWorld(t, nil)
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) { t.Errorf("forwarded %v", q) })
	edit := func(f func(*dns.Msg)) *dns.Msg {
		q := question("example.org.")
		f(q)
		return q
	}
	for _, tc := range []struct {
		name  string
		query *dns.Msg
		rcode int
	}{
		{"update", edit(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"no question", edit(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError},
		{"transfer", edit(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		{"EDNS 1", edit(func(q *dns.Msg) { q.SetEdns0(1232, false).IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		r, err := w.ask("udp", tc.query)
		if err != nil || r.Rcode != tc.rcode {
			t.Errorf("%s: answer %v, %v; want %s", tc.name, r, err, dns.RcodeToString[tc.rcode])
		}
	}
}

// TestNoAnswer sends what must not be answered, and then a question whose
// answer shows that the rest was passed over.
func TestNoAnswer(t *testing.T) {
	w := newWorld(t, nil)
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) { rw.WriteMsg(answerA(q, 1)) })
	reply, err := answerA(question("example.org."), 1).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{nil, {1}, make([]byte, 11), reply} {
		c, err := w.others.DialUDP(netip.AddrPortFrom(inside, 0), netip.AddrPortFrom(gateway, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(b)
	}
	stranger, err := w.others.DialUDP(netip.AddrPortFrom(outside, 0), netip.AddrPortFrom(gateway, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	b, _ := question("example.org.").Pack()
	stranger.Write(b)
	if _, err := w.ask("udp", question("example.org.")); err != nil {
		t.Fatal(err)
	}
	st := w.svc.Stats()
	if st.Malformed != 4 || st.Refused != 1 || st.Queries != 1 || st.Rcodes[0] != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestOverload(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.MaxClientQueries = 2
		c.Timeout = patience
	})
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) {
		arrived <- struct{}{}
		<-release
		rw.WriteMsg(answerA(q, 1))
	})
	answers := make(chan *dns.Msg, 2)
	for range 2 {
		go func() {
			r, _ := w.ask("udp", question("slow.example.org."))
			answers <- r
		}()
	}
	<-arrived
	<-arrived
	r, err := w.ask("udp", question("example.org."))
	if err != nil || r.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer %v, %v; want SERVFAIL", r, err)
	}
	close(release)
	for range 2 {
		if r := <-answers; r == nil || r.Rcode != dns.RcodeSuccess {
			t.Errorf("answer %v", r)
		}
	}
	if st := w.svc.Stats(); st.Overloaded != 1 {
		t.Errorf("stats %+v", st)
	}
}

// TestEndWhileWaiting ends the services while a question is in the works; the leak
// check at the end sees whether anything stays.
func TestEndWhileWaiting(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Timeout = time.Hour })
	arrived := make(chan struct{}, 1)
	w.serve(resolver[0], func(dns.ResponseWriter, *dns.Msg) {
		select {
		case arrived <- struct{}{}:
		default:
		}
	})
	c, err := w.others.DialUDP(netip.AddrPortFrom(inside, 0), netip.AddrPortFrom(gateway, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, _ := question("example.org.").Pack()
	c.Write(b)
	<-arrived
	if err := w.end(); err != nil {
		t.Errorf("run: %v", err)
	}
}

// TestPipelining asks two questions over one connection, and gets the answer that is
// done first before the other (RFC 7766 section 6.2.1.1).
func TestPipelining(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Timeout = patience })
	release := make(chan struct{})
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Name == "slow.example.org." {
			<-release
		}
		rw.WriteMsg(answerA(q, 1))
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := w.others.DialTCP(ctx, netip.AddrPortFrom(inside, 0), netip.AddrPortFrom(gateway, 53))
	if err != nil {
		t.Fatal(err)
	}
	c := &dns.Conn{Conn: conn}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for _, name := range []string{"slow.example.org.", "example.org."} {
		if err := c.WriteMsg(question(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"example.org.", "slow.example.org."} {
		r, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if r.Question[0].Name != want {
			t.Errorf("answer for %q, want %q", r.Question[0].Name, want)
		}
		if want == "example.org." {
			close(release)
		}
	}
}

// TestConnectionLimit opens connections until one client has no place left.
func TestConnectionLimit(t *testing.T) {
	w := newWorld(t, nil)
	w.serve(resolver[0], func(rw dns.ResponseWriter, q *dns.Msg) { rw.WriteMsg(answerA(q, 1)) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for i := range maxClientConns + 1 {
		conn, err := w.others.DialTCP(ctx, netip.AddrPortFrom(inside, 0), netip.AddrPortFrom(gateway, 53))
		if err == nil { // the reset may come that early
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			c := &dns.Conn{Conn: conn}
			if err = c.WriteMsg(question("example.org.")); err == nil {
				_, err = c.ReadMsg()
			}
		}
		if refused := errors.Is(err, syscall.ECONNRESET); refused != (i == maxClientConns) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if st := w.svc.Stats(); st.Overloaded != 1 {
		t.Errorf("stats %+v", st)
	}
}

func FuzzQuery(f *testing.F) {
	for _, q := range []*dns.Msg{question("example.org."), question("example.org.").SetEdns0(1232, true)} {
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-3])
	}
	s := new(Services)
	f.Fuzz(func(t *testing.T, b []byte) {
		query, ok := s.parse(b)
		if !ok {
			return
		}
		answer := s.screen(query)
		if answer == nil {
			if question := fitQuestion(query); len(question.Question) != 1 || question.IsEdns0() == nil {
				t.Errorf("forwarded %v", question)
			}
			answer = s.overload(query)
		}
		packed := s.pack(query, answer)
		r := new(dns.Msg)
		if err := r.Unpack(packed); err != nil || !r.Response || r.Id != query.Id || len(r.Answer) > 0 {
			t.Errorf("answer %x: %v", packed, err)
		}
	})
}
