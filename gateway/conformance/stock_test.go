package conformance

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// TestPing (I-1, R-5): the machine's own ping, small and as large as the tunnel
// allows. Options that record addresses would tell the inner one to the world: ours
// drops them, the kernel's NAT does not.
func TestPing(t *testing.T) {
	netlab.Program(t, "ping")
	eachSubject(t, func(t *testing.T, g *ground) {
		to := serverAddrs[0].String()
		run(t, g.a1.Namespace, "ping", "-n", "-c", "5", "-i", "0.02", "-W", "10", to)
		run(t, g.a1.Namespace, "ping", "-n", "-c", "2", "-i", "0.02", "-W", "10", "-M", "do", "-s", "1392", to)
		if out, err := try(t, g.a1.Namespace, "ping", "-n", "-c", "1", "-W", "0.3", "-M", "do", "-s", "1393", to); err == nil {
			t.Errorf("one byte more than the tunnel takes is answered: %s", out)
		}
		run(t, g.a1.Namespace, "ping", "-n", "-c", "2", "-i", "0.02", "-W", "10", "-M", "dont", "-s", "8000", to)
		wait := "0.3" // in vain
		if g.a == nil {
			wait = "10"
		}
		for _, option := range [][]string{{"-R"}, {"-T", "tsonly"}} {
			args := append([]string{"ping", "-n", "-c", "1", "-W", wait}, option...)
			out, err := try(t, g.a1.Namespace, append(args, to)...)
			if answered := err == nil; answered != (g.a == nil) {
				t.Errorf("ping %v: answered is %v: %s", option, answered, out)
			}
		}
	})
}

// TestCurl: a download and an upload arrive whole, with offloads off and
// on; what each side may send at once is clamped to the tunnel.
func TestCurl(t *testing.T) {
	netlab.Program(t, "curl")
	test := func(t *testing.T, g *ground) {
		const bytes = 4 << 20
		noise := make([]byte, bytes)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
		want := sha256.Sum256(noise)
		l, err := g.server.Listen("tcp4", netip.AddrPortFrom(serverAddrs[0], 80).String())
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				_, _ = w.Write(noise)
				return
			}
			h := sha256.New()
			_, err := io.Copy(h, r.Body)
			fmt.Fprintf(w, "%x %v %v", h.Sum(nil), err, r.RemoteAddr)
		})}
		g.task(func() { _ = server.Serve(l) })
		t.Cleanup(func() { _ = server.Close() })
		wan := g.watch(g.server, "wan")
		file := filepath.Join(t.TempDir(), "noise")
		url := "http://" + l.Addr().String() + "/"
		run(t, g.a1.Namespace, "curl", "-sS", "--max-time", "60", "-o", file, url)
		if got, err := os.ReadFile(file); err != nil || sha256.Sum256(got) != want {
			t.Errorf("the download: %d bytes, %v", len(got), err)
		}
		out := run(t, g.a1.Namespace, "curl", "-sS", "--max-time", "60", "-H", "Expect:", "--data-binary", "@"+file, url)
		if !strings.HasPrefix(out, fmt.Sprintf("%x <nil> %v:", want, egress(pairA, inner1))) {
			t.Errorf("the upload: %s", out)
		}
		for _, s := range wan.since(0) {
			if mss := mssOf(s.b); !s.out && mss > tunnelMTU-40 {
				t.Errorf("a SYN asks for %d bytes at once", mss)
			}
		}
	}
	t.Run("offloads off", func(t *testing.T) { eachSubject(t, test) })
	t.Run("offloads on", func(t *testing.T) { eachForwarder(t, test, withOffload) })
}

// mssOf returns the maximum segment size that a SYN tells first; 0 for what is none.
func mssOf(b []byte) int {
	if len(b) < 44 || b[0] != 0x45 || b[9] != 6 || b[33]&2 == 0 || b[40] != 2 {
		return 0
	}
	return int(b[42])<<8 | int(b[43])
}

// TestIperf: streams both ways by TCP, and datagrams that must be cut for the tunnel.
func TestIperf(t *testing.T) {
	netlab.Program(t, "iperf3")
	eachSubject(t, func(t *testing.T, g *ground) {
		amount := fmt.Sprintf("%dM", size(20, 500))
		for name, flags := range map[string][]string{
			"up": {"-n", amount}, "down": {"-n", amount, "--reverse"},
			"datagrams": {"-u", "-b", "20M", "-l", "1200", "-n", "1M"}, "fragments down": {"-u", "-b", "20M", "-l", "4000", "-n", "1M", "--reverse"},
		} {
			ended := g.iperfServer()
			out := run(t, g.a1.Namespace, append([]string{"iperf3", "-c", serverAddrs[0].String(), "-J"}, flags...)...)
			var result struct {
				End struct {
					Received struct {
						Bytes float64 `json:"bytes"`
						Bits  float64 `json:"bits_per_second"`
						Lost  float64 `json:"lost_percent"`
					} `json:"sum_received"`
					Sum struct {
						Bytes float64 `json:"bytes"`
						Lost  float64 `json:"lost_percent"`
					} `json:"sum"`
				} `json:"end"`
			}
			select {
			case <-ended: // until then the port is its
			case <-time.After(patience):
				t.Fatalf("%s: iperf3 -s -1 lives on after its one test", name)
			}
			_, object, _ := strings.Cut(out, "{") // a warning may stand before it
			if err := json.Unmarshal([]byte("{"+object), &result); err != nil {
				t.Fatalf("iperf3 says %q: %v", out, err)
			}
			r := result.End
			if max(r.Received.Bytes, r.Sum.Bytes) < 4e5 || max(r.Received.Lost, r.Sum.Lost) > 50 { // a loaded machine loses some in sockets
				t.Errorf("%s: %.0f bytes, %.1f %% lost", name, max(r.Received.Bytes, r.Sum.Bytes), max(r.Received.Lost, r.Sum.Lost))
			}
			t.Logf("%s: %.0f Mbit/s, %.2f %% lost", name, r.Received.Bits/1e6, max(r.Received.Lost, r.Sum.Lost))
		}
	})
}

// iperfServer starts a server for one test on the server's machine, and waits until it
// listens. It still does so for a while after its client has gone: the next one must not
// be started before the channel is closed.
func (g *ground) iperfServer() (ended <-chan struct{}) {
	g.t.Helper()
	cmd := exec.Command("iperf3", "-s", "-1", "--forceflush", "-B", serverAddrs[0].String())
	out, err := cmd.StdoutPipe()
	cmd.Stderr = cmd.Stdout
	if err == nil {
		err = g.server.Start(cmd)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = cmd.Process.Kill() }) // if its one test never came
	lines, said, listening := bufio.NewScanner(out), "", false
	for !listening && lines.Scan() {
		said += lines.Text() + "\n"
		listening = strings.Contains(lines.Text(), "listening")
	}
	done := make(chan struct{})
	g.task(func() {
		defer close(done)
		for lines.Scan() { // it must not wait for a reader
		}
		_ = cmd.Wait()
	})
	if !listening {
		g.t.Fatalf("iperf3 -s does not listen: %s", said)
	}
	return done
}

// TestDig: names by UDP and, asked so, by TCP.
func TestDig(t *testing.T) {
	netlab.Program(t, "dig")
	eachSubject(t, func(t *testing.T, g *ground) {
		at := netip.AddrPortFrom(serverAddrs[0], 53).String()
		c, err := g.server.ListenPacket("udp4", at)
		if err != nil {
			t.Fatal(err)
		}
		l, err := g.server.Listen("tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = c.Close(), l.Close() })
		g.task(func() { answerNames(c) })
		g.task(func() { answerNamesTCP(l) })
		for _, way := range []string{"+notcp", "+tcp"} {
			out := run(t, g.a1.Namespace, "dig", "+short", "+time=10", "+tries=3", way, "@"+serverAddrs[0].String(), "www.example")
			if strings.TrimSpace(out) != farAddr.String() {
				t.Errorf("dig %s says %q", way, out)
			}
		}
	})
}

// nameAnswer answers every question with one address.
func nameAnswer(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) == 0 {
		return nil
	}
	m.Response, m.Additionals = true, nil
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
		Body:   &dnsmessage.AResource{A: farAddr.As4()},
	}}
	b, _ := m.Pack()
	return b
}

func answerNames(c net.PacketConn) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(nameAnswer(b[:n]), from)
	}
}

func answerNamesTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err == nil {
			b := make([]byte, int(head[0])<<8|int(head[1]))
			if _, err := io.ReadFull(c, b); err == nil {
				a := nameAnswer(b)
				_, _ = c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
			}
		}
		_ = c.Close()
	}
}
