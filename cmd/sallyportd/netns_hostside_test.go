package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// stack lists a machine's links, addresses, routes, rules and neighbours that stay.
func stack(t *testing.T, n *netlab.Namespace) string {
	t.Helper()
	var all strings.Builder
	for _, what := range []string{
		"-o address", "-o link", "-4 rule", "-4 route show table all", "neighbour show nud permanent", "neighbour show proxy",
	} {
		fmt.Fprintf(&all, "ip %s\n%s", what, toolOn(t, n, "ip", strings.Fields(what)...))
	}
	return all.String()
}

// toolOn runs a program on a machine and returns what it says.
func toolOn(t *testing.T, n *netlab.Namespace, name string, args ...string) string {
	t.Helper()
	out, err := saidBy(n, append([]string{name}, args...)...)
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return out
}

// saidBy runs a program on a machine to its end.
func saidBy(n *netlab.Namespace, argv ...string) (string, error) {
	var out strings.Builder
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Run(cmd)
	return out.String(), err
}

// sameStack fails the test unless a machine's network stack is as it was.
func sameStack(t *testing.T, n *netlab.Namespace, before string) {
	t.Helper()
	if after := stack(t, n); after != before {
		t.Errorf("the network stack of %v was\n%s\nand is\n%s", n, before, after)
	}
}

// ofGateway is what a machine has that carries the gateway's tag.
func ofGateway(t *testing.T, n *netlab.Namespace) hostnet.Plan {
	t.Helper()
	p, err := n.Host().Tagged(83)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// awaitMemory waits until the gateway has noted where the worker is, so that after a
// crash it calls first.
func (w *world) awaitMemory() {
	w.t.Helper()
	eventually(w.t, 10*time.Second, "the state file says where the worker is", func() error {
		text, err := os.ReadFile(filepath.Join(w.dir, "gateway-state.json"))
		if want := fmt.Sprintf(`:"%v:`, workerAddr); err == nil && !strings.Contains(string(text), want) {
			err = fmt.Errorf("it has no %s", want)
		}
		return err
	})
}

// awaitLog waits until a daemon's log has a text behind the first n bytes.
func (g *ground) awaitLog(name string, n int, text string) {
	g.t.Helper()
	eventually(g.t, 10*time.Second, fmt.Sprintf("%s says %q", name, text), func() error {
		if said := g.said(name); !strings.Contains(said[n:], text) {
			return errors.New("it does not")
		}
		return nil
	})
}

// TestTunLeavesNothing: at its end the gateway takes everything back; what a crash
// leaves drops what arrives and is taken over, or removed, by the next start; and
// what stands in the way of a start is said, and nothing left half-done.
func TestTunLeavesNothing(t *testing.T) {
	requireTun(t)
	w := newWorld(t, byTun)
	before := stack(t, w.iad1)
	t.Run("bad input", func(t *testing.T) { tunRefusals(t, w, before) })

	w.up()
	b := w.sandbox(t, acmeFunction)
	allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	during := stack(t, w.iad1)
	if p := ofGateway(t, w.iad1); len(p.Routes) != 2*6 {
		t.Errorf("for three pairs there are %v", p)
	}
	w.awaitMemory()
	t.Run("second gateway", func(t *testing.T) { secondGateway(t, w) })
	t.Run("interface gone", func(t *testing.T) { interfaceGone(t, w, b) })
	t.Run("crash", func(t *testing.T) {
		w.gateway.end(t, syscall.SIGKILL)
		left := ofGateway(t, w.iad1)
		if len(left.Routes) != 6 || strings.Contains(left.String(), "unicast") || len(left.Rules)+len(left.Neighbours)+len(left.Addresses) != 0 {
			t.Errorf("the crash left %v; want six blackholes", left)
		}
		noLoop(t, w)
		w.startGateway()
		w.awaitGateway()
		if again := indexless(stack(t, w.iad1)); again != indexless(during) {
			t.Errorf("before the crash the network stack was\n%s\nand now it is\n%s", during, again)
		}
		allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	})
	t.Run("network removed", func(t *testing.T) {
		smaller := strings.NewReplacer("active: [net-quiet]", "active: [net-globex]").Replace(netnsState)
		w.gateway.end(t, syscall.SIGKILL)
		i := strings.Index(smaller, "  - {id: net-quiet")
		j := i + strings.Index(smaller[i:], "\n") + 1
		w.write("state.yaml", smaller[:i]+smaller[j:])
		w.startGateway()
		w.awaitGateway()
		eventually(t, 10*time.Second, "the removed network leaves nothing", func() error {
			if left := ofGateway(t, w.iad1).String(); strings.Contains(left, quietPair[0].String()) || strings.Contains(left, quietPair[1].String()) {
				return fmt.Errorf("there is %s", left)
			}
			return nil
		})
		if p := ofGateway(t, w.iad1); len(p.Routes) != 2*4 {
			t.Errorf("for two pairs there are %v", p)
		}
	})
	t.Run("other uplink after a crash", func(t *testing.T) {
		w.gateway.end(t, syscall.SIGKILL)
		program, config := filepath.Join(w.bin, "sallyportd"), w.write("other.yaml", otherDaemon())
		toolOn(t, w.iad1, "ip", "rule", "add", "from", "203.0.113.2", "lookup", "8300", "priority", "8300", "protocol", "83")
		w.refuses(t, append(slices.Clone(withoutAdmin), program, "run", "--config", config), "another uplink was killed", "rule 8300 from 203.0.113.2/32")
		// With the privilege it takes that away, and keeps what holds off a loop.
		w.refuses(t, []string{program, "run", "--config", config}, "203.0.113.2 is not on this host")
		if p := ofGateway(t, w.iad1); len(p.Routes) != 4 || len(p.Rules) != 0 {
			t.Errorf("there is %v", p)
		}
		noLoop(t, w)
		w.startGateway()
		w.awaitGateway()
	})
	w.withdraw()
	w.gateway.end(t, syscall.SIGTERM)
	sameStack(t, w.iad1, before)
}

// indexless takes the numbers and order of links out, which are others each time.
func indexless(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		number, rest, ok := strings.Cut(l, ": ")
		if ok && strings.Trim(number, "0123456789") == "" {
			lines[i] = rest
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// noLoop sends to a dedicated address from outside: its host drops it, and does not
// send it back.
func noLoop(t *testing.T, w *world) {
	t.Helper()
	const port = 33333
	err := w.home.Do(func() error {
		c, err := net.Dial("udp4", at(acmePair[0], port))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("anybody there?"))
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(acmePair[0], port)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := w.atIad1.Wait(ctx, func(p netlab.Packet) bool { return p.Out && p.Dst == to }); err != nil {
		t.Fatal(err)
	}
	// The kernel says to what comes behind it that nobody is there, and by then would have sent it back.
	err = w.worker.Do(func() error {
		c, err := net.Dial("udp4", at(iad1Addr, 51899))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("anybody there?"))
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.atIad1.Wait(ctx, func(p netlab.Packet) bool { return !p.Out && p.Proto == protoICMP && p.Dst.Addr() == workerAddr }); err != nil {
		t.Fatal(err)
	}
	for _, p := range w.atIad1.Packets() {
		if !p.Out && p.Dst == to {
			t.Errorf("the dead gateway's host sends back what it should drop: %v", p)
		}
	}
}

// interfaceGone removes the interface of a network that is in use.
func interfaceGone(t *testing.T, w *world, b *sandbox) {
	link := ""
	for _, r := range ofGateway(t, w.iad1).Routes {
		if r.Link != "" && r.Prefix.Addr() == acmePair[0] {
			link = r.Link
		}
	}
	said := len(w.said("sallyportd"))
	toolOn(t, w.iad1, "ip", "link", "set", link, "down")
	w.awaitLog("sallyportd", said, "is mended")
	b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Within: 5 * time.Second})
	if text := toolOn(t, w.iad1, "ip", "-6", "address", "show", "dev", link); text != "" {
		t.Errorf("the kernel has IPv6 of its own on it: %s", text)
	}

	said = len(w.said("sallyportd"))
	toolOn(t, w.iad1, "ip", "link", "delete", link)
	w.awaitLog("sallyportd", said, "network up")
	eventually(t, 10*time.Second, "the sandbox is served again", func() error {
		a, err := b.ask(task{Do: "http", Target: at(originAddr, portHTTP), Within: time.Second})
		if err == nil && a.Failure != "" {
			err = errors.New(a.Failure)
		}
		return err
	})
	if text := w.said("sallyportd")[said:]; !strings.Contains(text, link) || !strings.Contains(text, "gone") {
		t.Errorf("of an interface that was removed the log says %q", text)
	}
}

// learnt is where a machine thinks that an address is.
func learnt(t *testing.T, n *netlab.Namespace, a netip.Addr, link string) string {
	t.Helper()
	f := strings.Fields(toolOn(t, n, "ip", "neighbour", "show", a.String(), "dev", link))
	if i := slices.Index(f, "lladdr"); i >= 0 && i+1 < len(f) {
		return f[i+1]
	}
	return ""
}

// TestFlatLAN: where no router sends the addresses here, the gateway answers for them
// on the link and tells who believes that they are elsewhere; when the link was down,
// again. Checks of the far side work by tun.
func TestFlatLAN(t *testing.T) {
	requireTun(t)
	w := newWorld(t, byTun, "uplink: tun", "uplink: tun\ntun: {interface: eth0, announce: arp}\nhealth: {targets: [\""+at(originAddr, portHTTP)+"\"], interval: 200ms}")
	w.iad1.Sysctl("net.ipv4.neigh.eth0.proxy_delay", "0")
	before := stack(t, w.iad1)
	onLink := hostnet.Plan{Routes: []hostnet.Route{{Prefix: pairsPool, Link: "iad1"}}}
	if err := w.hub.Host().Apply(onLink); err != nil {
		t.Fatal(err)
	}
	mac, err := w.iad1.Host().HardwareAddr("eth0")
	if err != nil {
		t.Fatal(err)
	}
	const elsewhere = "02:00:00:00:00:99"
	toolOn(t, w.hub, "ip", "neighbour", "replace", acmePair[0].String(), "lladdr", elsewhere, "nud", "stale", "dev", "iad1")
	knows := func() error {
		if at := learnt(t, w.hub, acmePair[0], "iad1"); at != mac.String() {
			return fmt.Errorf("the router thinks that %v is at %s", acmePair[0], at)
		}
		return nil
	}
	arp := w.watchARP("iad1")
	w.startGatewayAsUnit()
	w.awaitGateway()
	w.startSidecar()
	w.awaitSidecar()
	eventually(t, 2*time.Second, "the router learns where the address is", knows)
	boxes := []*sandbox{w.sandbox(t, acmeFunction), w.sandbox(t, acmeFunction), w.sandbox(t, globexFunction)}
	for _, b := range boxes {
		b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Within: 5 * time.Second})
	}
	arp(acmePair[0], mac)

	said := len(w.said("sallyportd"))
	if strings.Contains(w.said("sallyportd"), "uplink lost") {
		t.Error("the checks fail")
	}
	w.iad1.Host().SetUp("eth0", false)
	w.awaitLog("sallyportd", said, "uplink lost")
	w.iad1.Host().SetUp("eth0", true)
	cable{w.iad1, netip.MustParseAddr("198.51.100.17")}.byDefault()
	w.awaitLog("sallyportd", said, "the host's network stack is mended")
	w.awaitLog("sallyportd", said, "uplink is back")
	for _, b := range boxes {
		eventually(t, 10*time.Second, "the sandbox is served again", func() error {
			a, err := b.ask(task{Do: "http", Target: at(originAddr, portHTTP), Within: time.Second})
			if err == nil && a.Failure != "" {
				err = errors.New(a.Failure)
			}
			return err
		})
	}
	w.gateway.end(t, syscall.SIGTERM)
	sameStack(t, w.iad1, before)
}

// TestSecondUplink: packets from dedicated addresses leave by the uplink that is
// theirs, though the host's own default is another, however strictly it looks at
// sources; and by no other when that is down.
func TestSecondUplink(t *testing.T) {
	requireTun(t)
	w := newWorld(t, byTun, "uplink: tun", "uplink: tun\ntun: {interface: eth1, next_hop: 198.51.100.129}")
	second := netip.MustParsePrefix("198.51.100.130/28")
	connect := func() {
		w.lab.Connect(
			netlab.End{Namespace: w.iad1, Link: "eth1", Address: second},
			netlab.End{Namespace: w.hub, Link: "second", Address: netip.MustParsePrefix("198.51.100.129/28")})
		w.hub.Route(pairsPool, second.Addr())
		for _, link := range []string{"all", "eth0", "eth1"} {
			w.iad1.Sysctl("net.ipv4.conf."+link+".rp_filter", "1")
		}
	}
	connect()
	// While the link is down or gone the hub must not tell the origin, which may still have
	// something to send: that would be a source outside the pairs.
	w.hub.Sysctl("net.ipv4.conf.all.ignore_routes_with_linkdown", "1")
	toolOn(t, w.hub, "ip", "route", "add", "blackhole", pairsPool.String(), "metric", "4000")
	before := stack(t, w.iad1)
	atSecond := w.capture("second")
	w.up()
	b := w.sandbox(t, acmeFunction)
	allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Count: 5}).Sources, 5, acmePair)
	b.must(t, task{Do: "upload", Target: at(originAddr, portSum), Size: 1 << 20})
	w.iad1.Host().SetUp("eth1", false)
	b.fails(t, task{Do: "connect", Target: at(originAddr, portHTTP), Within: time.Second})
	w.awaitLog("sallyportd", 0, "lost what the gateway gave it")
	w.iad1.Host().SetUp("eth1", true)
	w.awaitLog("sallyportd", 0, "is mended")
	b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Within: 5 * time.Second})
	said := len(w.said("sallyportd"))
	toolOn(t, w.iad1, "ip", "link", "delete", "eth1")
	b.fails(t, task{Do: "connect", Target: at(originAddr, portHTTP), Within: time.Second})
	w.awaitLog("sallyportd", said, "interface eth1: is it gone?")
	connect()
	w.awaitLog("sallyportd", said, "is mended")
	b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Within: 5 * time.Second})

	carried := uint64(0)
	for s, n := range w.atIad1.Sources() {
		if !s.Out && pairsPool.Contains(s.Addr) {
			t.Errorf("%d packets of %v left by the host's own uplink", n, s.Addr)
		}
	}
	for s, n := range atSecond.Sources() {
		if !s.Out && slices.Contains(acmePair, s.Addr) {
			carried += n
		}
	}
	if carried == 0 {
		t.Error("nothing left by the second uplink")
	}
	w.gateway.end(t, syscall.SIGTERM)
	if after := stack(t, w.iad1); withoutMACs(after) != withoutMACs(before) {
		t.Errorf("the network stack was\n%s\nand is\n%s", before, after)
	}
}

// withoutMACs is indexless, and has no Ethernet addresses: those of a new link are others.
func withoutMACs(text string) string {
	return indexless(regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}|@if[0-9]+|fe80::[0-9a-f:]+`).ReplaceAllString(text, "-"))
}

// TestSocketsAddAddresses: the gateway puts the addresses on an interface, finds them
// again after a crash under load, and takes them off at its end.
func TestSocketsAddAddresses(t *testing.T) {
	w := newWorld(t, byTun, "uplink: tun", "sockets: {add_addresses_to: lo}")
	before := stack(t, w.iad1)
	w.up()
	b := w.sandbox(t, acmeFunction)
	allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	w.startLoad(t, b, originAddr)
	w.awaitMemory()
	for range 2 {
		if p := ofGateway(t, w.iad1); len(p.Addresses) != 6 || len(p.Routes) != 0 {
			t.Errorf("for three pairs there are %v", p)
		}
		before := b.load(t)
		w.gateway.end(t, syscall.SIGKILL)
		w.startGateway()
		w.awaitGateway()
		eventually(t, 15*time.Second, "the load is answered again", func() error {
			if r := b.load(t); r.Answered < before.Answered+20 || r.AnsweredUDP < before.AnsweredUDP+20 {
				return fmt.Errorf("it was %+v, and is %+v", before, r)
			}
			return nil
		})
	}
	if r := b.load(t); len(r.Sources) != 1 {
		t.Errorf("the load left from %v", r.Sources)
	}
	allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Within: 5 * time.Second}).Sources, 1, acmePair)
	w.gateway.end(t, syscall.SIGTERM)
	sameStack(t, w.iad1, before)
}
