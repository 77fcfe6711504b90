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
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// peered is an estate whose office is connected.
type peered struct {
	*estate
	data *origin // the database
	wg   *stock
	// near has its egress address on the host of the site tunnel, far on the other,
	// which relays.
	near, far *sandbox
}

// newPeered connects the office with WireGuard's own programs as
// `sallyport peering show` says, and starts sandboxes on both hosts.
func newPeered(t *testing.T) *peered {
	t.Helper()
	e := newEstate(t, bySockets)
	private, public, err := netlab.NewWireGuardKey()
	if err != nil {
		t.Fatal(err)
	}
	e.write("state.yaml", estateState+fmt.Sprintf(estatePeering, public))
	p := &peered{estate: e, data: newFarSide(t, e.database, databaseAddr)}
	t.Cleanup(p.data.close)
	e.startRegion()
	var text string
	eventually(t, 5*time.Second, "the command prints the office's configuration", func() (err error) {
		text, err = e.cli("peering", "show", "peer-office", "--format", "wg-quick")
		return err
	})
	p.wg = newStock(e.ground, e.office, text, private)
	e.startSidecar()
	p.near, p.far = e.sandboxOn(t, acmeFunction, e.a), e.sandboxOn(t, acmeFunction, e.b)
	return p
}

// TestPeering: sandboxes of both hosts reach a peered private network with their own
// addresses; nobody there reaches them, whatever address they claim; and what is
// peered no more is cut off at once.
func TestPeering(t *testing.T) {
	requireStock(t)
	p := newPeered(t)
	t.Run("untranslated", p.untranslated)
	t.Run("inward", p.inward)
	t.Run("foreign sources", p.foreignSources)
	t.Run("overlap", p.overlap)
	t.Run("taken out", p.takenOut)
	t.Run("site killed", p.siteKilled)
	own := []netip.Addr{databaseAddr, p.near.inner, p.far.inner}
	for s := range p.atData.Sources() {
		if s.Addr.IsValid() && !slices.Contains(own, s.Addr) {
			t.Errorf("the database's link saw the source %v; want %v alone", s, own)
		}
	}
	if err := p.atData.Stats().Complete(); err != nil {
		t.Error(err)
	}
}

func (p *peered) untranslated(t *testing.T) {
	for _, b := range []*sandbox{p.near, p.far} {
		for _, what := range []task{
			{Do: "http", Target: at(databaseAddr, portHTTP), Count: 10},
			{Do: "udp", Target: at(databaseAddr, portUDP)},
		} {
			allFrom(t, b.must(t, what).Sources, max(what.Count, 1), []netip.Addr{b.inner})
		}
		b.must(t, task{Do: "ping", Target: databaseAddr.String()})
		const size = 4 << 20
		b.must(t, task{Do: "upload", Target: at(databaseAddr, portSum), Size: size})
		b.must(t, task{Do: "download", Target: at(databaseAddr, portGive), Size: size})
		const echoRequest = 8
		for what, match := range map[string]func(netlab.Packet) bool{
			"TCP":  func(q netlab.Packet) bool { return q.Proto == protoTCP && q.TCPFlags&tcpSyn != 0 },
			"UDP":  func(q netlab.Packet) bool { return q.Proto == protoUDP },
			"ICMP": func(q netlab.Packet) bool { return q.Proto == protoICMP && q.ICMPType == echoRequest },
		} {
			if !slices.ContainsFunc(p.atData.Packets(), func(q netlab.Packet) bool {
				return !q.Out && q.Src.Addr() == b.inner && q.Dst.Addr() == databaseAddr && match(q)
			}) {
				t.Errorf("the database's link saw no %s from %v", what, b.inner)
			}
		}
		// What is not peered leaves from the pair as before.
		allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	}
}

// received is how many packets a sandbox's kernel has been given.
func received(t *testing.T, b *sandbox) uint64 {
	t.Helper()
	text := b.must(t, task{Do: "file", Target: "/proc/net/dev"}).Texts[0]
	for line := range strings.Lines(text) {
		name, counts, ok := strings.Cut(strings.TrimSpace(line), ":")
		if fields := strings.Fields(counts); ok && name != "lo" && len(fields) > 1 {
			n, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("a sandbox has no interface: %s", text)
	return 0
}

// settled is what received says once the ends of former connections have arrived.
func settled(t *testing.T, b *sandbox) uint64 {
	t.Helper()
	const polls = 15 // without a packet
	last, same := uint64(0), 0
	eventually(t, 5*time.Second, "a sandbox receives nothing more", func() error {
		n := received(t, b)
		if same++; n != last {
			last, same = n, 0
		}
		if same < polls {
			return fmt.Errorf("%d packets", n)
		}
		return nil
	})
	return last
}

// inward tries all that the database can to reach sandboxes that listen, and the
// network's own address.
func (p *peered) inward(t *testing.T) {
	for _, b := range []*sandbox{p.near, p.far} {
		b.must(t, task{Do: "listen", Target: "0.0.0.0:8097"})
	}
	before := []uint64{settled(t, p.near), settled(t, p.far)}
	dropped := p.droppedInward(t)
	sent := p.knock(t, p.database, databaseAddr,
		netip.AddrPortFrom(p.near.inner, 8097), netip.AddrPortFrom(p.far.inner, 8097),
		netip.AddrPortFrom(innerGateway, 53), netip.MustParseAddrPort("10.20.200.200:8097"))
	eventually(t, 5*time.Second, "the gateway drops what the database sent", func() error {
		if n := p.droppedInward(t) - dropped; n < sent {
			return fmt.Errorf("%d of %d", n, sent)
		}
		return nil
	})
	p.quiet(t, before)
}

// quiet fails the test if a sandbox was given packets since, or heard anybody.
func (p *peered) quiet(t *testing.T, before []uint64) {
	t.Helper()
	for i, b := range []*sandbox{p.near, p.far} {
		if n := received(t, b); n != before[i] {
			t.Errorf("the sandbox %v received %d packets", b.inner, n-before[i])
		}
		if strings.Contains(b.stderr.String(), "ARRIVED") {
			t.Errorf("the sandbox %v was reached: %s", b.inner, b.stderr.String())
		}
	}
}

// knock sends each target a SYN, a datagram and an echo request from one of a
// machine's addresses, none of which may be answered, and returns how many packets
// that were at least.
func (p *peered) knock(t *testing.T, on *netlab.Namespace, from netip.Addr, targets ...netip.AddrPort) int {
	t.Helper()
	const patience = 150 * time.Millisecond
	answered := func(what string, to netip.AddrPort, err error) {
		t.Helper()
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s from %v to %v ends with %v; want nothing to come back", what, from, to, err)
		}
	}
	var all sync.WaitGroup
	for _, to := range targets {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c, err := on.DialFrom(ctx, &net.TCPAddr{IP: from.AsSlice()}, "tcp4", to.String())
			if err == nil {
				_ = c.Close()
			}
			answered("a connect", to, err)
		})
		all.Go(func() {
			c, err := on.DialFrom(t.Context(), &net.UDPAddr{IP: from.AsSlice()}, "udp4", to.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err = c.Write([]byte("knock")); err == nil {
				_, err = c.Read(make([]byte, 100))
			}
			answered("a datagram", to, err)
		})
		all.Go(func() {
			cmd := exec.CommandContext(t.Context(), "ping", "-n", "-c", "1", "-W", fmt.Sprint(patience.Seconds()), "-I", from.String(), to.Addr().String())
			if err := on.Run(cmd); err == nil {
				t.Errorf("%v answers a ping from %v", to.Addr(), from)
			}
		})
	}
	all.Wait()
	return 3 * len(targets)
}

// droppedInward counts what the host of the site tunnel dropped on its way to
// sandboxes, whatever the reason.
func (p *peered) droppedInward(t *testing.T) int {
	t.Helper()
	text, err := askAdmin(p.a.Namespace, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "sallyport_drops_total{") || !strings.Contains(line, `direction="ingress"`) || !strings.Contains(line, `network="net-acme"`) {
			continue
		}
		fields := strings.Fields(line)
		n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += int(n)
	}
	return sum
}

// foreignSources has the office send into the tunnel what is not of its ranges:
// from another private address, from a sandbox's, from the network's own, and from
// one to which a sandbox has a connection.
func (p *peered) foreignSources(t *testing.T) {
	open := task{Do: "hold", Target: at(originAddr, portEcho), Count: 1}
	p.near.must(t, open)
	p.far.must(t, open)
	before := []uint64{settled(t, p.near), settled(t, p.far)}
	foreign := func() uint64 {
		s, err := p.api.Peering(t.Context(), "peer-office")
		if err != nil || s.Report == nil {
			t.Fatalf("the report of the peering: %+v, %v", s, err)
		}
		return s.Report.Foreign
	}
	counted, sent := foreign(), 0
	for _, from := range []netip.Addr{netip.MustParseAddr("10.99.0.1"), p.far.inner, innerGateway, originAddr, acmePair[0]} {
		p.wg.must("ip", "address", "add", netip.PrefixFrom(from, 32).String(), "dev", "lo")
		targets := []netip.AddrPort{netip.AddrPortFrom(p.near.inner, 8097), netip.AddrPortFrom(p.far.inner, 8097)}
		if from == p.far.inner {
			targets = targets[:1]
		}
		sent += p.knock(t, p.office, from, targets...)
		p.wg.must("ip", "address", "del", netip.PrefixFrom(from, 32).String(), "dev", "lo")
	}
	eventually(t, 5*time.Second, "the report counts what was sent with foreign sources", func() error {
		if n := foreign() - counted; n < uint64(sent) {
			return fmt.Errorf("%d of %d", n, sent)
		}
		return nil
	})
	p.quiet(t, before)
	if text := p.mustCLI("peering", "show", "peer-office"); !strings.Contains(text, "FOREIGN SOURCE") {
		t.Errorf("the command says %q", text)
	}
}

// reload puts another desired state in place and waits until the control plane has
// said what is expected of it.
func (p *peered) reload(t *testing.T, state, expected string) (said string) {
	t.Helper()
	p.write("state.yaml", state)
	before := len(p.said("control"))
	if err := p.plane.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the control plane says: "+expected, func() error {
		if said = p.said("control")[before:]; !strings.Contains(said, expected) {
			return fmt.Errorf("it says %q", said)
		}
		return nil
	})
	return said
}

// overlap: a desired state with a peering that overlaps another, or the network, is
// refused, and what is in force stays.
func (p *peered) overlap(t *testing.T) {
	state := p.state(t)
	p.startLoad(t, p.near, databaseAddr)
	p.startLoad(t, p.far, databaseAddr)
	for _, c := range []struct{ cidr, other string }{{"10.30.0.128/25", "10.30.0.0/24"}, {"10.20.8.0/24", "10.20.0.0/16"}} {
		wrong := state + fmt.Sprintf("  - {id: peer-second, network: net-acme, cidrs: [%s], publicKey: %q, state: active}\n",
			c.cidr, strings.TrimSpace(output(t, strings.NewReader(output(t, nil, "wg", "genkey")), "wg", "pubkey")))
		said := p.reload(t, wrong, "desired state not changed")
		check, err := exec.Command(filepath.Join(p.bin, "sallyportd"), "check", "--config", filepath.Join(p.dir, "control.yaml")).CombinedOutput()
		if err == nil {
			t.Errorf("check finds nothing wrong: %s", check)
		}
		for who, text := range map[string]string{"the log": said, "check": string(check)} {
			if !strings.Contains(text, c.cidr) || !strings.Contains(text, c.other) {
				t.Errorf("%s says %q; want %s and %s in it", who, text, c.cidr, c.other)
			}
		}
	}
	p.reload(t, state, "desired state read anew")
	for _, b := range []*sandbox{p.near, p.far} {
		r := b.load(t)
		eventually(t, 5*time.Second, "the load goes on", func() error {
			if now := b.load(t); now.Answered < r.Answered+5 || now.AnsweredUDP < r.AnsweredUDP+5 {
				return fmt.Errorf("%+v, after %+v", now, r)
			}
			return nil
		})
		if r = b.load(t); r.Failed != 0 || r.Ended != "" {
			t.Errorf("the load of %v suffered: %+v", b.inner, r)
		}
	}
}

func (p *peered) state(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, "state.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// takenOut takes the peering out under load, and puts it back.
func (p *peered) takenOut(t *testing.T) {
	state := p.state(t)
	began := time.Now()
	p.reload(t, estateState, "desired state read anew")
	for _, b := range []*sandbox{p.near, p.far} {
		eventually(t, time.Second, "an open connection to the database ends", func() error {
			if r := b.load(t); r.Ended == "" {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		if r := b.load(t); r.Errno != syscall.ECONNRESET {
			t.Errorf("an open connection of %v: %s; want a reset", b.inner, r.Ended)
		}
	}
	ended := time.Now()
	t.Logf("the open connections were reset %v after the signal", ended.Sub(began).Round(time.Millisecond))
	for _, b := range []*sandbox{p.near, p.far} {
		failed := b.load(t).Failed
		eventually(t, 5*time.Second, "the load fails", func() error {
			if r := b.load(t); r.Failed < failed+10 {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		if a := b.fails(t, task{Do: "connect", Target: at(databaseAddr, portHTTP)}); a.Took > soon {
			t.Errorf("a connect to what is peered no more fails after %v: %s", a.Took, a.Failure)
		}
		allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	}
	for _, q := range p.atData.Packets() {
		if !q.Out && q.Src.IsValid() && q.At.After(ended) {
			t.Errorf("%v after the end, the database got %v", q.At.Sub(ended), q)
		}
	}
	p.reload(t, state, "desired state read anew")
	began = time.Now()
	for _, b := range []*sandbox{p.near, p.far} {
		r := b.load(t)
		eventually(t, 10*time.Second, "the load is answered again", func() error {
			if now := b.load(t); now.Answered == r.Answered || now.AnsweredUDP == r.AnsweredUDP {
				return fmt.Errorf("%+v", now)
			}
			return nil
		})
	}
	t.Logf("the database was reached again %v after it was put back", time.Since(began).Round(time.Millisecond))
}

// siteKilled kills the host of the site tunnel and starts it again: it calls the
// other side, which has noticed nothing.
func (p *peered) siteKilled(t *testing.T) {
	p.awaitMemory(t, officeAddr)
	p.kill(p.a.daemon)
	p.startHost(p.a)
	p.awaitHosts(p.a)
	began := time.Now()
	for _, b := range []*sandbox{p.near, p.far} {
		r := b.load(t)
		eventually(t, soon, "the database answers again", func() error {
			if now := b.load(t); now.Answered == r.Answered || now.AnsweredUDP == r.AnsweredUDP {
				return fmt.Errorf("%+v", now)
			}
			return nil
		})
	}
	t.Logf("the database was reached again %v after the site's host was back", time.Since(began).Round(time.Millisecond))
}
