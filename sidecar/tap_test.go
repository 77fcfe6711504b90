package sidecar

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
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
// whose only interface is carried over to the sandbox's, frame by frame, by a monitor.
type guest struct {
	*runtimeNamespace
	host *hostnet.Kernel
}

// newGuest boots one with what the answer says, on the sandbox's interface as the monitor
// has opened it.
func newGuest(t *testing.T, opened *os.File, box Attached) *guest {
	t.Helper()
	g := &guest{runtimeNamespace: newRuntimeNamespace(t)}
	nic, err := openTAP(g.Namespace, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]*os.File{{opened, nic}, {nic, opened}} {
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
	t.Cleanup(func() { _ = opened.Close(); _ = nic.Close() })
	if g.host, err = g.Host(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.host.Close() })
	if err := g.setMAC(net.HardwareAddr(box.Interface.MAC)); err != nil {
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
	tap, err := openTAP(ns.Namespace, box.Interface.Name)
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, tap, box)
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
	if err := g.say("0.0.0.0", "192.0.2.1:9"); err != nil {
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

// A sandbox that takes a veth over as runsc does: it reads addresses and routes off the
// interface, takes the addresses away, and goes on with a stack of its own on a packet
// socket, which asks for its gateway by ARP.
func TestAttachVethTakenOver(t *testing.T) {
	ns := newRuntimeNamespace(t)
	p := newPlane(t)
	r := serve(t, p)
	box, err := r.client.attach(t.Context(), in("p", NamespaceRequest{Path: ns.path, Ethernet: "veth"}))
	if err != nil {
		t.Fatal(err)
	}
	var neighbour, route []byte
	var nic *os.File
	err = ns.Do(func() error {
		if neighbour, err = exec.Command("ip", "neighbour", "show", "dev", "eth0").Output(); err != nil {
			return err
		}
		if route, err = exec.Command("ip", "route", "show", "default", "dev", "eth0").Output(); err != nil {
			return err
		}
		if err := exec.Command("ip", "address", "flush", "dev", "eth0").Run(); err != nil {
			return err
		}
		nic, err = openFrames("eth0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr(box.Interface.GatewayMAC).String()
	if want := "10.0.0.1 lladdr " + mac + " PERMANENT"; !strings.Contains(string(neighbour), want) || !strings.Contains(string(route), "via 10.0.0.1 ") {
		t.Errorf("the interface has the neighbours %q and the default route %q; want %q, and the gateway", neighbour, route, want)
	}
	g := newGuest(t, nic, box)
	if from, err := g.echo("192.0.2.1:9"); err != nil || from != box.Inner {
		t.Errorf("echo from %v: %v", from, err)
	}
	if out, err := g.ip("neighbour", "show", "dev", "eth0"); err != nil || !strings.Contains(out, "10.0.0.1 lladdr "+mac) {
		t.Errorf("the guest's neighbours are %q, %v; want the gateway by ARP", out, err)
	}
	seen := p.gateways["net_a"].from(box.Inner)
	spoofed := func() uint64 {
		var list Listing
		r.get(t, "/v1/sandboxes", &list)
		return list.Sandboxes[0].Drops["spoofed_source"]
	}
	for i, spoof := range []func() error{
		func() error { _, err := g.ip("address", "add", "10.0.9.9/32", "dev", "eth0"); return err },
		func() error { return g.setMAC(net.HardwareAddr{2, 0, 0, 0, 0, 9}) },
	} {
		before := spoofed()
		if err := spoof(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "what has a wrong source is counted", func() bool {
			if err := g.say([]string{"10.0.9.9", "0.0.0.0"}[i], "192.0.2.1:9"); err != nil {
				t.Fatal(err)
			}
			return spoofed() > before
		})
	}
	if n := p.gateways["net_a"].from(box.Inner) + p.gateways["net_a"].from(netip.MustParseAddr("10.0.9.9")); n != seen {
		t.Errorf("%d packets of wrong sources went on", n-seen)
	}
}

// openFrames opens a packet socket for whole frames on a link of this thread's namespace.
func openFrames(link string) (*os.File, error) {
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err = errors.Join(err, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index})); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), link), nil
}

// ip runs ip(8) in the guest.
func (g *guest) ip(args ...string) (text string, err error) {
	err = g.Do(func() error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		text = string(out)
		return err
	})
	return text, err
}

// setMAC gives its interface an Ethernet address.
func (g *guest) setMAC(mac net.HardwareAddr) error {
	_, err := g.ip("link", "set", "eth0", "address", mac.String())
	return err
}

// say sends a datagram from an address and waits for nothing.
func (g *guest) say(from, to string) error {
	return g.Do(func() error {
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}).Dial("udp4", to)
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
