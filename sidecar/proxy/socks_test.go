package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"
)

// A client that is not ours connects by address and by name.
func TestSOCKSForeignClient(t *testing.T) {
	w := newWorld(t, nil)
	who := w.Credentials()
	dialer, err := proxy.SOCKS5("tcp", w.Address().String(), &proxy.Auth{User: who.User, Password: who.Password}, proxy.Direct)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{origin.String(), loopback.String(), "::ffff:192.0.2.80", "origin.example", "ORIGIN.example.", "two.example", "second.example", "big.example"} {
		c, err := dialer.Dial("tcp", net.JoinHostPort(host, "7"))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, "hello "+host)
		expect(t, c, []byte("hello "+host))
		_ = c.Close()
	}
	for question, want := range map[string]int{
		"udp 10.0.0.1 origin.example.": 1, "udp 10.0.0.1 big.example.": 1, "tcp 10.0.0.1 big.example.": 1,
		"udp 10.0.0.1 second.example.": 1, "udp 10.0.0.2 second.example.": 1, "udp 10.0.0.2 origin.example.": 0,
	} {
		if got := w.askedFor(question); got != want {
			t.Errorf("%q was asked %d times, want %d", question, got, want)
		}
	}
	w.wantStats(t, Stats{Served: 8})
	stranger, err := proxy.SOCKS5("tcp", w.Address().String(), &proxy.Auth{User: who.User, Password: "x"}, proxy.Direct)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Dial("tcp", "192.0.2.80:7"); err == nil {
		t.Error("a wrong password is taken")
	}
	w.wantStats(t, Stats{Served: 8, Refused: 1})
}

func TestSOCKSReplies(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.DialTimeout = 300 * time.Millisecond })
	ipv6 := append([]byte{familyIPv6}, netip.MustParseAddr("2001:db8::1").AsSlice()...)
	for what, c := range map[string]struct {
		command byte
		to      []byte
		want    socksReply
	}{
		"a closed port":    {commandConnect, ip(origin, portClosed), replyRefused},
		"silence":          {commandConnect, ip(silent, 80), replyHost},
		"no such name":     {commandConnect, name("nothing.example", 80), replyHost},
		"a name without A": {commandConnect, name("empty.example", 80), replyHost},
		"a silent server":  {commandConnect, name("mute.example", 80), replyHost},
		"no name":          {commandConnect, name("a..b", 80), replyHost},
		"an escape":        {commandConnect, name(`\046.example`, 80), replyHost},
		"IPv6":             {commandConnect, append(ipv6, 0, 80), replyFamily},
		"IPv6 as a name":   {commandConnect, name("2001:db8::1", 80), replyFamily},
		"no host":          {commandConnect, ip(netip.IPv4Unspecified(), 80), replyNotAllowed},
		"no port":          {commandConnect, ip(origin, 0), replyNotAllowed},
		"multicast":        {commandConnect, ip(netip.MustParseAddr("224.0.0.1"), 80), replyNotAllowed},
		"broadcast":        {commandConnect, ip(netip.MustParseAddr("255.255.255.255"), 80), replyNotAllowed},
		"BIND":             {2, ip(origin, 80), replyCommand},
		"no command":       {9, ip(origin, 80), replyCommand},
		"no address type":  {commandConnect, []byte{2, 1, 2, 3, 4, 0, 80}, replyFamily},
	} {
		t.Run(what, func(t *testing.T) {
			conn := w.client(t)
			w.login(t, conn)
			began := time.Now()
			code, bound := request(t, conn, c.command, c.to)
			if socksReply(code) != c.want || bound != netip.AddrPortFrom(netip.IPv4Unspecified(), 0) {
				t.Errorf("answered with %d and %v, want %d", code, bound, c.want)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("answered after %v", took)
			}
			_ = ended(t, conn)
		})
	}
	w.wantStats(t, Stats{Failed: 13})
}

func TestReplyTo(t *testing.T) {
	for err, want := range map[error]socksReply{
		syscall.ENETUNREACH: replyNetwork, syscall.EHOSTUNREACH: replyHost, syscall.ECONNREFUSED: replyRefused,
		syscall.ETIMEDOUT: replyHost, context.DeadlineExceeded: replyHost, net.ErrClosed: replyNetwork,
		errors.New("another"): replyFailure, errNowhere: replyNotAllowed, errFamily: replyFamily, errNoName: replyHost,
	} {
		if got := replyTo(fmt.Errorf("dial: %w", err)); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// What is no SOCKS5, or cut short, ends the connection, with the answer that the RFC has for it.
func TestSOCKSMalformed(t *testing.T) {
	w := newWorld(t, nil)
	who := w.Credentials()
	login := string([]byte{5, 1, 2, 1, 16}) + who.User + string([]byte{32}) + who.Password
	for what, c := range map[string]struct{ say, want string }{
		"nothing":                 {"", ""},
		"no methods":              {"\x05\x00", "\x05\xff"},
		"no password among them":  {"\x05\x02\x00\x01", "\x05\xff"},
		"methods cut short":       {"\x05\x02\x00", ""},
		"password of version 2":   {"\x05\x01\x02\x02", "\x05\x02"},
		"no name":                 {"\x05\x01\x02\x01\x00\x00", "\x05\x02\x01\x01"},
		"a wrong password":        {"\x05\x01\x02\x01\x10" + who.User + "\x20" + strings.Repeat("0", 32), "\x05\x02\x01\x01"},
		"a wrong name":            {"\x05\x01\x02\x01\x10" + strings.Repeat("0", 16) + "\x20" + who.Password, "\x05\x02\x01\x01"},
		"a request of version 4":  {login + "\x04\x01\x00", "\x05\x02\x01\x00"},
		"a reserved byte":         {login + "\x05\x01\x01", "\x05\x02\x01\x00"},
		"an empty name":           {login + "\x05\x01\x00\x03\x00\x00\x50", "\x05\x02\x01\x00"},
		"an address cut short":    {login + "\x05\x01\x00\x01\x0a", "\x05\x02\x01\x00"},
		"SOCKS4, which is not it": {"\x04\x01\x00\x50\xc0\x00\x02\x50\x00", "HTTP/1.1 400"},
	} {
		conn := w.client(t)
		_, _ = io.WriteString(conn, c.say)
		_ = conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if (err != nil && !errors.Is(err, syscall.ECONNRESET)) || !strings.HasPrefix(string(got), c.want) || c.want == "" && len(got) > 0 {
			t.Errorf("%s: answered with %q, %v; want %q", what, got, err, c.want)
		}
	}
	w.wantStats(t, Stats{Refused: 5})
}

// What a client says at once, before any answer, is not lost.
func TestSOCKSAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	who := w.Credentials()
	c := w.client(t)
	all := string([]byte{5, 1, 2, 1, 16}) + who.User + string([]byte{32}) + who.Password + "\x05\x01\x00" + string(ip(origin, portSum)) + "hello"
	_, _ = io.WriteString(c, all)
	_ = c.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || len(got) != 2+2+10+1 || got[len(got)-1] != '5' {
		t.Errorf("answered with %q, %v", got, err)
	}
}

func TestRelayEnds(t *testing.T) {
	w := newWorld(t, nil)
	t.Run("half-close", func(t *testing.T) {
		c := w.connect(t, ip(origin, portSum))
		const size = 3 << 20
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != fmt.Sprint(size) {
			t.Errorf("answered with %q, %v", got, err)
		}
	})
	t.Run("reset by the far side", func(t *testing.T) {
		c := w.connect(t, ip(origin, portReset))
		_, _ = c.Write([]byte{1})
		if err := ended(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("ended with %v, want a reset", err)
		}
	})
	t.Run("reset by the client", func(t *testing.T) {
		c := w.connect(t, ip(origin, portTake))
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := <-w.taken; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the far side sees %v, want a reset", err)
		}
	})
	t.Run("the network ends", func(t *testing.T) {
		c := w.connect(t, ip(origin, portEcho))
		_ = w.near.Close()
		if err := ended(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("ended with %v, want a reset", err)
		}
	})
	w.wantStats(t, Stats{Served: 4})
}

func TestLimits(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxConnections = 2 })
	first, second := w.connect(t, ip(origin, portEcho)), w.connect(t, ip(origin, portEcho))
	beyond, err := net.Dial("tcp4", w.Address().String()) // the reset may be here first
	if err == nil {
		_ = beyond.SetDeadline(time.Now().Add(patience))
		err = ended(t, beyond)
		_ = beyond.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one beyond the limit ends with %v, want a reset", err)
	}
	w.wantStats(t, Stats{Open: 2, Served: 2, Refused: 1})
	_ = first.Close()
	w.wantStats(t, Stats{Open: 1, Served: 2, Refused: 1})
	third := w.connect(t, ip(origin, portEcho))
	for _, c := range []net.Conn{second, third} {
		_, _ = io.WriteString(c, "on")
		expect(t, c, []byte("on"))
	}
}

// Who says nothing is let go at each stage, and so is who is silent for long.
func TestSlowClients(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.HandshakeTimeout, c.IdleTimeout = 100*time.Millisecond, 200*time.Millisecond
	})
	for _, said := range []string{"", "\x05", "\x05\x01\x02", "\x05\x01\x02\x01\x10abc", "GET http://192.0.2.80/ HTTP/1.1\r\n", "G"} {
		c := w.client(t)
		_, _ = io.WriteString(c, said)
		if err := ended(t, c); err != nil {
			t.Errorf("after %q: %v, want a FIN", said, err)
		}
	}
	c := w.connect(t, ip(origin, portEcho))
	began := time.Now()
	for time.Since(began) < 300*time.Millisecond { // what moves is not idle
		_, _ = c.Write([]byte{1})
		expect(t, c, []byte{1})
	}
	if err := ended(t, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a silent connection ends with %v, want a reset", err)
	}
	w.wantStats(t, Stats{Served: 1})
}

func TestConfig(t *testing.T) {
	good := Config{Network: Stack{}, DNS: []netip.Addr{server1}}
	for what, spoil := range map[string]func(*Config){
		"no network":     func(c *Config) { c.Network = nil },
		"no name server": func(c *Config) { c.DNS = nil },
		"negative":       func(c *Config) { c.MaxConnections = -1 },
		"negative time":  func(c *Config) { c.IdleTimeout = -1 },
	} {
		c := good
		spoil(&c)
		if s, err := New(c); err == nil {
			s.Close()
			t.Errorf("%s: no error", what)
		}
	}
}

// conversation is what a client says, in one piece, and room for the answers.
type conversation struct {
	io.Reader
	bytes.Buffer
}

func (c *conversation) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// Whatever a client says: nobody gets past the password, no byte behind the
// request is consumed, and what is understood means the same when said again.
func FuzzHandshake(f *testing.F) {
	who := Credentials{User: "u", Password: "p"}
	for _, s := range []string{
		"\x01\x02\x01\x01u\x01p\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50rest",
		"\x01\x02\x01\x01u\x01p\x05\x03\x00\x03\x03a.b\x00\x50",
		"\x02\x00\x02\x01\x01u\x01q\x05\x01\x00\x04", "\x00", "\x01\x00",
	} {
		f.Add([]byte(s))
	}
	s := &Server{credentials: who}
	f.Fuzz(func(t *testing.T, said []byte) {
		rest := bytes.NewReader(said)
		c := &conversation{Reader: rest}
		command, to, err := s.shakeHands(c)
		if err != nil {
			return
		}
		if !bytes.Contains(said, []byte("\x01\x01u\x01p")) {
			t.Fatalf("% x passes without the password", said)
		}
		if c.String() != "\x05\x02\x01\x00" {
			t.Errorf("answered with %q", c.String())
		}
		used := said[:len(said)-rest.Len()]
		if to.addr.Is4() && !bytes.HasSuffix(used, ip(to.addr, to.port)) && !bytes.HasSuffix(used, name(to.addr.String(), to.port)) &&
			!bytes.Contains(used, []byte{5, command, 0, familyIPv6}) {
			t.Errorf("% x means %v", used, to)
		}
		if to.addr.IsValid() == (to.name != "") || len(to.name) > 255 {
			t.Errorf("% x means %+v", used, to)
		}
	})
}

// No datagram makes the parser fail, and its payload is the datagram's end.
func FuzzDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\xc0\x00\x02\x50\x00\x07payload"))
	f.Add([]byte("\x00\x00\x00\x03\x03a.b\x00\x07"))
	f.Add([]byte("\x00\x00\x01\x01\xc0\x00\x02\x50\x00\x07fragment"))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, payload, ok := parseDatagram(b)
		if !ok {
			return
		}
		if !bytes.HasSuffix(b, payload) || len(b)-len(payload) > maxHeaderUDP {
			t.Errorf("% x has the payload % x", b, payload)
		}
		if to.addr.Is4() && b[3] == familyIPv4 {
			head := append([]byte{0, 0, 0}, ip(to.addr, to.port)...)
			if !bytes.Equal(append(head, payload...), b) {
				t.Errorf("% x is read as %v and % x", b, to, payload)
			}
		}
	})
}
