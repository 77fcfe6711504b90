package uplink

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// What would keep a wire from being opened, or from passing packets, is said before, and
// nothing is changed by asking.
func TestCheckWire(t *testing.T) {
	l := newWireLab(t)
	check := func(change func(*WireConfig)) (err error) {
		c := l.config()
		change(&c)
		_ = l.host.Do(func() error {
			err = CheckWire(c)
			return nil
		})
		return err
	}
	same := func(*WireConfig) {}
	before := l.ip("-o", "link") + l.ip("rule")
	if err := check(same); err != nil {
		t.Errorf("where nothing is missing: %v", err)
	}
	wants := func(err error, words ...string) {
		t.Helper()
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("got %v, want %q in it", err, w)
			}
		}
	}
	wants(check(func(c *WireConfig) { c.Interface = "eth7" }), "eth7", "ip link")
	wants(check(func(c *WireConfig) { c.NextHop = netip.MustParseAddr("10.77.0.1") }), "not on the link of interface eth1")
	l.host.Sysctl("net.ipv4.conf.eth1.forwarding", "0")
	wants(check(same), "sysctl -w net/ipv4/conf/eth1/forwarding=1")
	l.host.Sysctl("net.ipv4.conf.eth1.forwarding", "1")
	if after := l.ip("-o", "link") + l.ip("rule"); after != before {
		t.Errorf("asking has made\n%s\nof\n%s", after, before)
	}
	l.ip("link", "set", "eth1", "down")
	wants(check(same), "interface eth1 is down")
}

// Wires that are opened at the same time never take one number, also where two processes
// open them: each has handles of its own on the kernel, as here.
func TestWiresAtOnce(t *testing.T) {
	l := newWireLab(t)
	const wires = 4
	first := func(id string) int {
		n, err := foundWires{}.place(wireName(id))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var ids []string // whose numbers collide
	for i := 0; len(ids) < wires; i++ {
		if id := fmt.Sprint("peer_", i); first(id) == first("peer_0") {
			ids = append(ids, id)
		}
	}
	opened := make([]*Wire, wires)
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			c := l.config()
			c.ID, c.Network = id, netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 100+i))
			w, err := l.open(c)
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
			opened[i] = w
		})
	}
	all.Wait()
	numbers := map[int]bool{}
	for _, w := range opened {
		if w != nil {
			numbers[w.plan.Rules[1].Table] = true
			defer w.Close()
		}
	}
	if len(numbers) != wires {
		t.Errorf("%d wires have %d numbers", wires, len(numbers))
	}
	if links := l.ip("-o", "link"); strings.Contains(links, "sallyclaim") {
		t.Errorf("a claim was left: %s", links)
	}
}
