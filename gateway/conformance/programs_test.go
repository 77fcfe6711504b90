package conformance

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The tests of this file point programs at the translator that know nothing of it. Each is
// listed as not run where its program is missing; those that take seconds run in the long
// form alone.

// startSTUN runs coturn's server on both addresses of the server's machine, and waits
// until it answers there.
func (g *ground) startSTUN() {
	g.t.Helper()
	dir := g.t.TempDir()
	// No configuration file, and nothing written but in dir. Programs of this name know
	// different flags: RFC 5780's questions are answered only if told to, or always; an
	// operator's port is open unless told otherwise, or not; and an unknown flag is an error.
	args := []string{"-n", "--log-file=stdout", "--listening-port=3478", "--pidfile=" + filepath.Join(dir, "pid"), "--userdb=" + filepath.Join(dir, "db")}
	for _, a := range serverAddrs {
		args = append(args, "--listening-ip="+a.String())
	}
	help, _ := try(g.t, g.server, "turnserver", "--log-file=stdout", "-h") // exits as it likes
	for _, flag := range []string{"--stun-only", "--no-tls", "--no-dtls", "--no-cli", "--rfc5780"} {
		if regexp.MustCompile(`(^|\s)` + flag + `(\s|$)`).MatchString(help) {
			args = append(args, flag)
		}
	}
	var out strings.Builder
	cmd := exec.Command("turnserver", args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, dir
	if err := g.server.Start(cmd); err != nil {
		g.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	g.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if g.t.Failed() {
			g.t.Logf("turnserver says: %s", out.String())
		}
	})
	c, err := g.server.ListenPacket("udp4", serverAddrs[0].String()+":0")
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	// A binding request of RFC 8489: type, length, magic cookie, transaction.
	request := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, "a good start"...)
	for _, a := range serverAddrs {
		eventually(g.t, "turnserver answers on "+a.String(), func() bool {
			_, _ = c.WriteTo(request, udpAddr(netip.AddrPortFrom(a, 3478)))
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			_, from, err := c.ReadFrom(make([]byte, 1500))
			return err == nil && addrPortOf(from).Addr() == a
		})
	}
}

// TestNATDiscovery (U-1, U-8): coturn's discovery says the declared classes. That of the
// filter waits for answers that must not come, in the long form alone.
func TestNATDiscovery(t *testing.T) {
	netlab.Program(t, "turnserver")
	netlab.Program(t, "turnutils_natdiscovery")
	says := map[string]string{"-m": "Endpoint Independent Mapping"}
	if *long {
		says["-f"] = "Address and Port Dependent Filtering"
	}
	eachSubject(t, func(t *testing.T, g *ground) {
		g.startSTUN()
		for flag, want := range says {
			out, err := try(t, g.a1.Namespace, "turnutils_natdiscovery", flag, serverAddrs[0].String())
			if !strings.Contains(out, "NAT with "+want) {
				t.Errorf("turnutils_natdiscovery %s: %v: %s", flag, err, out)
			}
			t.Log(out)
		}
	})
}

// pionPackage is the package of pion's program, of the version in go.mod.
const pionPackage = "github.com/pion/stun/v3/cmd/stun-nat-behaviour"

var pion = netlab.NewPlainPrograms(pionPackage)

// stunBehaviour builds pion's program and returns its path. It skips the test where the
// program's source is not there and cannot be fetched.
func stunBehaviour(t *testing.T) string {
	t.Helper()
	if out, err := exec.Command("go", "list", "-deps", pionPackage).CombinedOutput(); err != nil {
		netlab.NotRun(t, fmt.Sprintf("the source of %s cannot be had: %v: %s", path.Base(pionPackage), err, lastLine(string(out))))
	}
	return filepath.Join(pion.Build(t), path.Base(pionPackage))
}

// TestSTUNBehaviour (U-1, U-8): pion's program says the same.
func TestSTUNBehaviour(t *testing.T) {
	onlyLong(t)
	netlab.Program(t, "turnserver")
	program := stunBehaviour(t)
	eachSubject(t, func(t *testing.T, g *ground) {
		g.startSTUN()
		out, err := try(t, g.a1.Namespace, program, "-server", netip.AddrPortFrom(serverAddrs[0], 3478).String())
		for _, want := range []string{"NAT mapping behavior: endpoint independent", "NAT filtering behavior: address and port dependent"} {
			if !strings.Contains(out, want) || strings.Contains(out, "(no NAT)") {
				t.Errorf("stun-nat-behaviour does not say %q: %v: %s", want, err, out)
			}
		}
		t.Log(out)
	})
}

// way is the hops to far, in order, as programs should show them.
func (g *ground) way() []string {
	if g.a == nil {
		return []string{innerGateway.String(), routerWAN.String(), farAddr.String()}
	}
	return []string{innerGateway.String(), gatewayWAN.String(), routerWAN.String(), farAddr.String()}
}

// shown is the hops of a program's output: of each line that begins with a number, the
// first address, each once.
func shown(out string) (hops []string) {
	hop := regexp.MustCompile(`^\s*\d+[:?.|\s-]+.*?(\d+\.\d+\.\d+\.\d+)`)
	for line := range strings.Lines(out) {
		if m := hop.FindStringSubmatch(line); m != nil && !slices.Contains(hops, m[1]) {
			hops = append(hops, m[1])
		}
	}
	return hops
}

// walk runs a program that walks to the far side, and again where the program itself may be why
// a hop is missing. tracepath waits for a second for each answer, which a busy machine may need,
// and cannot be told to wait longer. traceroute -I, once in some thousand times, takes in none of
// the echo replies that came to it, with the kernel's NAT as well.
func (g *ground) walk(args ...string) (out string, err error) {
	g.t.Helper()
	for range 3 {
		out, err = try(g.t, g.a1.Namespace, args...)
		if !strings.Contains(out, "no reply") && !(args[0] == "traceroute" && strings.Contains(out, "  *\n")) {
			break
		}
	}
	return out, err
}

// TestTraceroutePrograms (R-1, I-4, T-9, R-7): the hops, as traceroute, tcptraceroute,
// mtr and tracepath see them. X-12: a program that knows its probes by their identifications
// does not know those that are quoted from beyond the translator, which gives its own.
func TestTraceroutePrograms(t *testing.T) {
	far := farAddr.String()
	const wait = "10,1e4,1e4" // traceroute gives up a hop ten times as late as the next one is, unless told
	for _, c := range []struct {
		args []string
		long bool // takes seconds
		byID bool // tracks by identification
	}{
		{args: []string{"traceroute", "-n", "-q", "1", "-w", wait, "-m", "8", far}},
		{args: []string{"traceroute", "-U", "-n", "-q", "1", "-w", wait, "-m", "8", far}},
		{args: []string{"traceroute", "-I", "-n", "-q", "1", "-w", wait, "-m", "8", far}},
		{args: []string{"traceroute", "-T", "-p", "81", "-n", "-q", "1", "-w", wait, "-m", "8", far}},
		{args: []string{"tcptraceroute", "--track-port", "-n", "-q", "1", "-w", "10", "-m", "8", far, "81"}},
		{args: []string{"tcptraceroute", "-n", "-q", "1", "-w", "3", "-m", "8", far, "81"}, long: true, byID: true},
		{args: []string{"mtr", "--report", "-n", "-c", "2", "-m", "8", far}, long: true},
		{args: []string{"mtr", "--report", "-n", "-c", "2", "-m", "8", "--udp", far}, long: true},
		{args: []string{"mtr", "--report", "-n", "-c", "2", "-m", "8", "--tcp", "-P", "81", far}, long: true},
		{args: []string{"tracepath", "-n", "-m", "8", far}},
	} {
		t.Run(strings.Join(c.args[:slices.Index(c.args, far)], " "), func(t *testing.T) {
			if c.long {
				onlyLong(t)
			}
			netlab.Program(t, c.args[0])
			eachSubject(t, func(t *testing.T, g *ground) {
				want := g.way()
				if c.byID && g.a != nil {
					want = []string{innerGateway.String(), far}
				}
				out, err := g.walk(c.args...)
				if hops := shown(out); !slices.Equal(hops, want) {
					t.Errorf("the hops are %v, want %v; %v: %s", hops, want, err, out)
				}
			})
		})
	}
}

// TestTracepathMTU: tracepath finds the narrow link.
func TestTracepathMTU(t *testing.T) {
	netlab.Program(t, "tracepath")
	eachSubject(t, func(t *testing.T, g *ground) {
		g.narrow("1300")
		out, err := g.walk("tracepath", "-n", "-m", "8", farAddr.String())
		if !strings.Contains(out, "pmtu 1300") {
			t.Errorf("tracepath: %v: %s", err, out)
		}
	})
}

// TestNmapOutward: a scan from a sandbox sees what is there. A-13 b: one whose first
// fragments hold no whole header sees nothing.
func TestNmapOutward(t *testing.T) {
	onlyLong(t)
	netlab.Program(t, "nmap")
	g := newGround(t)
	g.serve()
	open := fmt.Sprintf("%d/open/tcp", probePorts[0])
	scan := []string{"nmap", "-n", "-Pn", "-sS", "--max-retries", "1", "-oG", "-", "-p", fmt.Sprintf("%d,99", probePorts[0])}
	out, err := try(t, g.a1.Namespace, append(scan, serverAddrs[0].String())...)
	if !strings.Contains(out, open) || !strings.Contains(out, "99/closed/tcp") {
		t.Errorf("nmap -sS: %v: %s", err, out)
	}
	out, err = try(t, g.a1.Namespace, append(scan, "-f", serverAddrs[0].String())...)
	if strings.Contains(out, "/open/") || !strings.Contains(out, fmt.Sprintf("%d/filtered/tcp", probePorts[0])) {
		t.Errorf("nmap -f: %v: %s", err, out)
	}
}

// TestNmapInward (T-4, A-9): ports of a dedicated IP are silent, those of live mappings
// too. A-21: nobody's idle scan can use it.
func TestNmapInward(t *testing.T) {
	onlyLong(t)
	netlab.Program(t, "nmap")
	g := newGround(t)
	g.serve()
	live, _ := g.a1.client(t, 0).ask(endpoint(0, 0))
	ports := fmt.Sprintf("22,80,51820,%d", live.Port())
	out, err := try(t, g.spoofer, "nmap", "-n", "-Pn", "-sS", "-sU", "--max-retries", "1", "-oG", "-", "-p", ports, live.Addr().String())
	if err != nil || strings.Contains(out, "/open/") || strings.Contains(out, "/closed/") || !strings.Contains(out, "22/filtered/tcp") {
		t.Errorf("nmap -sS -sU: %v: %s", err, out)
	}
	out, _ = try(t, g.spoofer, "nmap", "-n", "-Pn", "-sI", live.Addr().String()+":80", "-p", fmt.Sprint(probePorts[0]), serverAddrs[0].String())
	if !strings.Contains(out, "cannot be used") {
		t.Errorf("nmap -sI: %s", out)
	}
	g.a1.check(t)
}

// TestHping (T-4, A-3, A-9): a bounded number of SYNs and echoes, from the spoofer's own
// address and from the server's: none is answered, none leaves state.
func TestHping(t *testing.T) {
	onlyLong(t)
	netlab.Program(t, "hping3")
	g := newGround(t)
	g.serve()
	c := g.a1.connect(t, 0, endpoint(0, 0))
	before := g.a.stats()
	packets := size(100, 10_000)
	count, link := fmt.Sprint(packets), g.watch(g.gateway, "upA")
	for _, args := range [][]string{
		{"-S", "-p", "++1"}, {"-1"}, {"-2", "-p", "++1000"}, {"-S", "-A", "-p", "++1", "-a", serverAddrs[0].String()},
		{"-R", "-k", "-s", fmt.Sprint(probePorts[0]), "-p", "++1024", "-a", serverAddrs[0].String()},
	} {
		args = append([]string{"hping3", "-n", "-q", "-c", count, "-i", "u1000"}, args...)
		mark := link.mark()
		out, err := try(t, g.spoofer, append(args, c.seen.Addr().String())...)
		if !strings.Contains(out, " 0 packets received") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
		arrived := 0
		for _, s := range link.since(mark) {
			switch {
			case s.out:
				arrived++
			case s.b[9] != 6 || binary.BigEndian.Uint16(s.b[20:]) != c.seen.Port():
				t.Errorf("%v is answered: %x", args, s.b)
			}
		}
		if arrived < packets {
			t.Errorf("%v: %d of %d packets came to the Forwarder", args, arrived, packets)
		}
	}
	if after := g.a.stats(); after.sessions != before.sessions {
		t.Errorf("%d sessions, before %d", after.sessions, before.sessions)
	}
	c.check(t)
}

// python is the interpreter that Debian's python3-scapy belongs to.
const python = "/usr/bin/python3"

// requireScapy skips the test where scapy is not there.
func requireScapy(t *testing.T) {
	t.Helper()
	netlab.Program(t, python)
	if out, err := exec.Command(python, "-c", "import scapy.all").CombinedOutput(); err != nil {
		netlab.NotRun(t, "python3-scapy is not installed (make deps): "+lastLine(string(out)))
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// scapy sends what a script puts into the list packets. Who answers is for the captures
// of this package to see: what matches what is not left to scapy.
func scapy(t *testing.T, n *netlab.Namespace, script string) {
	t.Helper()
	run(t, n, python, "-c", "from scapy.all import *\n"+script+"\nsend(packets, verbose=0)")
}

// TestScapyInward: what scapy crafts towards a dedicated IP is not answered.
// T-4, R-2, R-5, A-5, A-13, A-14, A-20, A-22, I-10.
func TestScapyInward(t *testing.T) {
	onlyLong(t)
	requireScapy(t)
	g := newGround(t)
	g.serve()
	c := g.a1.client(t, 0)
	live, _ := c.ask(endpoint(0, 0))
	heard, arrived := g.watch(g.spoofer, "wan"), g.watch(g.gateway, "upA")
	mark, markArrived := heard.mark(), arrived.mark()
	scapy(t, g.spoofer, fmt.Sprintf(`
to, port = %q, %d
packets = [IP(dst=to)/TCP(sport=4000, dport=p, flags=f) for p in (22, 80, port) for f in ("S", "SA", "A", "R", "F", "FPU", "SF", 0)]
packets += [IP(dst=to)/UDP(sport=4000, dport=p)/b"x" for p in (53, port)]
packets += [IP(dst=to)/ICMP(type=t) for t in (8, 13, 15, 17)]
packets += [IP(dst=to, proto=p)/Raw(b"x" * 40) for p in (4, 41, 47, 50, 132)]
packets += [IP(dst=to, options=[o])/UDP(sport=4000, dport=port)/b"x" for o in (IPOption_LSRR(routers=["198.51.100.80"]), IPOption_SSRR(routers=["198.51.100.80"]), IPOption_RR(routers=["0.0.0.0"]))]
packets += fragment(IP(dst=to)/ICMP()/(b"x" * 3000), fragsize=1000)
packets += [IP(dst=to, chksum=0x1234)/ICMP(), IP(dst=to, ttl=1)/ICMP(), IP(dst=to, src=to)/ICMP()]
`, live.Addr().String(), live.Port()))
	eventually(t, "most of what scapy sent reaches the Forwarder", func() bool { return len(arrived.since(markArrived)) >= 30 })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if s, err := heard.await(ctx, mark, func(p *pkt, s sniffed) bool { return !s.out && p.Src == live.Addr() }); err == nil {
		t.Errorf("scapy is answered: %x", s.b)
	}
	if again, others := c.ask(endpoint(0, 0)); again != live || len(others) > 0 {
		t.Errorf("the live socket is seen as %v, before %v, and hears %q", again, live, others)
	}
}

// TestScapyOutward: what scapy crafts in a sandbox passes where it is good (an echo, one
// in fragments of any order) and not where it is bad. U-14, A-13, R-5, A-18.
func TestScapyOutward(t *testing.T) {
	requireScapy(t)
	g := newGround(t)
	inside := g.watch(g.a1.Namespace, "tun0")
	// Of whole replies and of first fragments alike the identifier stands at 24.
	answered := func(ident byte) bool {
		return slices.ContainsFunc(inside.since(0), func(s sniffed) bool {
			return !s.out && s.b[0] == 0x45 && s.b[9] == 1 && s.b[7] == 0 && s.b[6]&0x1f == 0 && (s.b[20] == 0 || s.b[20] == 14) && s.b[24] == 0 && s.b[25] == ident
		})
	}
	scapy(t, g.a1.Namespace, fmt.Sprintf(`
to = %q
packets = [IP(dst=to, options=[IPOption_RR(routers=["0.0.0.0"] * 3)])/ICMP(id=3)/b"x"]
packets += [IP(dst=to, options=[IPOption_LSRR(routers=[to])])/ICMP(id=4)/b"x"]
packets += [IP(dst=to)/ICMP(type=13, id=5)]
packets += [IP(dst=to)/ICMP(id=1)/b"x"]
packets += reversed(fragment(IP(dst=to, id=77)/ICMP(id=2)/(b"x" * 3000), fragsize=1000))
`, serverAddrs[0].String()))
	eventually(t, "an echo is answered", func() bool { return answered(1) })
	eventually(t, "an echo in fragments is answered", func() bool { return answered(2) })
	g.a1.check(t)
	for ident, what := range map[byte]string{3: "an echo that records its route", 4: "a source route", 5: "a timestamp request"} {
		if answered(ident) {
			t.Errorf("%s is answered", what)
		}
	}
}

// TestConntrack: the reference is one: conntrack shows the mapping that the server sees.
func TestConntrack(t *testing.T) {
	netlab.Program(t, "conntrack")
	g := newReference(t)
	g.serve()
	c := g.a1.client(t, 0)
	seen, _ := c.ask(endpoint(0, 0))
	if out, err := try(t, g.gateway, "conntrack", "-C"); err != nil {
		netlab.NotRun(t, "conntrack cannot ask the kernel: "+lastLine(out))
	}
	out, err := try(t, g.gateway, "conntrack", "-L", "-p", "udp")
	if err != nil || !strings.Contains(out, fmt.Sprintf("dst=%v sport=%d dport=%d", seen.Addr(), probePorts[0], seen.Port())) {
		t.Errorf("conntrack -L: %v: %s", err, out)
	}
}

// TestRealTime (X-8, U-5, C-8): the timers by the real clock, in the long form alone: a
// mapping of UDP outlives its 300 s by no more than packets that leave, and an echo's
// identifier ends after 60 s.
func TestRealTime(t *testing.T) {
	onlyLong(t)
	if deadline, ok := t.Deadline(); ok && time.Until(deadline) < 400*time.Second {
		netlab.NotRun(t, "the tests' time is too short for it (-timeout)")
	}
	g := newGround(t)
	server := g.serve()
	c := g.a1.client(t, 0)
	mapped, _ := c.ask(endpoint(0, 0))
	wan := g.watch(g.server, "wan")
	_ = echoIdent(t, g, g.a1, wan, 99, serverAddrs[0])
	began := time.Now()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for now := range tick.C {
		g.a.sweep()
		age := now.Sub(began)
		if _, err := server.udp[0][0].WriteTo([]byte("hello"), udpAddr(mapped)); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.hear(5 * time.Second)
		switch alive := err == nil; {
		case age < 295*time.Second && !alive:
			t.Fatalf("after %v nothing comes in", age)
		case age > 305*time.Second && alive:
			t.Fatalf("after %v a silent mapping is still open", age)
		case age > 305*time.Second:
			return
		}
		if s := g.a.stats(); age > 65*time.Second && s.mappings > 1 {
			t.Fatalf("after %v the identifier of an echo is still there", age)
		}
	}
}
