package sidecar

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// openTAP opens the TAP called name in a namespace, as the monitor of a virtual machine
// does.
func openTAP(ns *hostnet.Namespace, name string) (*os.File, error) {
	var f *os.File
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	return f, err
}

// guest is a virtual machine of sorts: a kernel's stack in a namespace of its own,
// whose only interface is carried over to a TAP, frame by frame, by a monitor.
type guest struct {
	*runtimeNamespace
	host *hostnet.Kernel
	tap  *os.File // the sandbox's, as the monitor holds it
}

// newGuest boots one with what the answer says, but for what is replaced.
func newGuest(t *testing.T, where *runtimeNamespace, box Attached, mac net.HardwareAddr) *guest {
	t.Helper()
	g := &guest{runtimeNamespace: newRuntimeNamespace(t)}
	var err error
	if g.tap, err = openTAP(where.Namespace, box.Interface.Name); err != nil {
		t.Fatal(err)
	}
	nic, err := openTAP(g.Namespace, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]*os.File{{g.tap, nic}, {nic, g.tap}} {
		go func() {
			b := make([]byte, 65536)
			for {
				n, err := pair[0].Read(b)
				if err != nil {
					return
				}
				_, _ = pair[1].Write(b[:n])
			}
		}()
	}
	t.Cleanup(func() { _ = g.tap.Close(); _ = nic.Close() })
	if g.host, err = g.Host(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.host.Close() })
	if err := g.setMAC(mac); err != nil {
		t.Fatal(err)
	}
	err = g.host.Apply(hostnet.Plan{
		Links:     []hostnet.Link{{Name: "lo"}, {Name: "eth0"}},
		Addresses: []hostnet.Address{{Link: "eth0", Prefix: netip.PrefixFrom(box.Inner, box.Interface.CIDR.Bits())}},
		Routes:    []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "eth0", Via: box.Interface.Gateway}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// A guest behind a TAP, which takes ARP and its MTU for real.
func TestAttachTAP(t *testing.T) {
	ns := newRuntimeNamespace(t)
	p := newPlane(t)
	r := serve(t, p)
	owner := 4711
	box, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: "tap", Owner: &owner}))
	if err != nil {
		t.Fatal(err)
	}
	if box.Interface.Name != "tap0" || box.Interface.Gateway != netip.MustParseAddr("10.0.0.1") || box.Interface.CIDR.Bits() != 16 {
		t.Errorf("answer %+v", box.Interface)
	}
	if k, err := ns.Host(); err == nil {
		all, err := k.Addresses()
		if _ = k.Close(); err != nil || len(all) != 2 || !all[0].Addr().IsLoopback() || !all[1].Addr().IsLoopback() {
			t.Errorf("the TAP's namespace itself has the addresses %v, %v", all, err)
		}
	}
	g := newGuest(t, ns, box, net.HardwareAddr(box.Interface.MAC))
	if from, err := g.echo("192.0.2.1:9"); err != nil || from != box.Inner {
		t.Errorf("echo from %v: %v", from, err)
	}
	// Its kernel learns of an MTU that nobody told it.
	if err := g.tooBig(box.MTU); err != nil {
		t.Error(err)
	}
	drops := func() map[string]uint64 {
		var list Listing
		r.get(t, "/v1/sandboxes", &list)
		return list.Sandboxes[0].Drops
	}
	if d := drops(); d["spoofed_source"] != 0 || d["too_big"] == 0 {
		t.Errorf("drops %v", d)
	}
	seen := p.gateways["net_a"].from(box.Inner)
	// With another MAC, or another's address, there is nobody.
	if err := g.setMAC(net.HardwareAddr{2, 0, 0, 0, 0, 9}); err != nil {
		t.Fatal(err)
	}
	if err := g.say("192.0.2.1:9"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what a wrong MAC sends is counted", func() bool { return drops()["spoofed_source"] > 0 })
	if n := p.gateways["net_a"].from(box.Inner); n != seen {
		t.Errorf("%d packets of a wrong MAC went on", n-seen)
	}
	if err := r.client.end(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	// The monitor still has the TAP; a new sandbox may have it again.
	if _, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: "tap"})); err != nil {
		t.Errorf("attach the TAP again: %v", err)
	}
}

// setMAC gives its interface an Ethernet address.
func (g *guest) setMAC(mac net.HardwareAddr) error {
	return g.Do(func() error { return exec.Command("ip", "link", "set", "eth0", "address", mac.String()).Run() })
}

// say sends a datagram and waits for nothing.
func (g *guest) say(to string) error {
	return g.Do(func() error {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("hello"))
		return errors.Join(err, c.Close())
	})
}

// tooBig sends datagrams that are a byte too long until the kernel knows.
func (g *guest) tooBig(mtu int) error {
	return g.Do(func() error {
		c, err := net.Dial("udp4", "192.0.2.1:9")
		if err != nil {
			return err
		}
		defer c.Close()
		again := time.NewTicker(5 * time.Millisecond)
		defer again.Stop()
		for deadline := time.After(patience); ; {
			if _, err := c.Write(make([]byte, mtu+1-28)); errors.Is(err, unix.EMSGSIZE) {
				return nil
			}
			select {
			case <-again.C:
			case <-deadline:
				return fmt.Errorf("the guest never learns of the MTU %d", mtu)
			}
		}
	})
}
