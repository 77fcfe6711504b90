package main

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// forgeries are answers to probes as somebody makes them who sees none: with every
// state of health, and the nonces and sequences that are the likeliest to hit.
func forgeries() (all [][]byte) {
	for health := range packet.Health(8) {
		for _, nonce := range []uint64{0, 1, rand.Uint64()} {
			for sequence := range uint64(8) {
				b := make([]byte, packet.ProbeSize)
				packet.Probe{Type: packet.ProbeReply, Health: health, Nonce: nonce, Sequence: sequence}.Put(b)
				all = append(all, b)
			}
		}
	}
	return all
}

// forge sends forgeries to each target, from the port that answers come from if
// that can be had. Many are refused on their way; that is no error. They go a few at
// a time, so that none of the sandbox's own packets are lost behind them in its device's queue.
func forge(t task) error {
	pause := time.NewTicker(time.Millisecond)
	defer pause.Stop()
	for _, target := range t.Targets {
		to, err := net.ResolveUDPAddr("udp4", target)
		if err != nil {
			return err
		}
		c, err := net.DialUDP("udp4", &net.UDPAddr{Port: packet.ProbePort}, to)
		if err != nil {
			c, err = net.DialUDP("udp4", nil, to)
		}
		if err != nil {
			return err
		}
		for part := range slices.Chunk(forgeries(), 8) {
			for _, b := range part {
				_, _ = c.Write(b)
			}
			<-pause.C
		}
		_ = c.Close()
	}
	return nil
}

// tap reads whole packets off a link.
type tap struct{ fd int }

// newTap begins to read on a link of a machine. Close it.
func newTap(t *testing.T, n *netlab.Namespace, link string) *tap {
	t.Helper()
	v := &tap{fd: -1}
	err := n.Do(func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if v.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		patience := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
		return errors.Join(unix.SetsockoptTimeval(v.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
			unix.Bind(v.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}))
	})
	if err != nil {
		t.Fatalf("read packets on %s of %v: %v", link, n, err)
	}
	t.Cleanup(func() { _ = unix.Close(v.fd) })
	return v
}

// datagrams reads UDP datagrams from some addresses to one, whole, until there are
// n of each. It returns up to 50 of each.
func (v *tap) datagrams(t *testing.T, from []netip.Addr, to netip.Addr, n int) (all [][]byte) {
	t.Helper()
	const header = 20
	missing, kept := make(map[netip.Addr]int), make(map[netip.Addr]int)
	for _, a := range from {
		missing[a] = n
	}
	deadline := time.Now().Add(10 * time.Second)
	for b := make([]byte, 1<<16); len(missing) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("missing are %v datagrams", missing)
		}
		size, _, err := unix.Recvfrom(v.fd, b, 0)
		if err != nil || size <= header || b[0] != 0x45 || b[9] != protoUDP || netip.AddrFrom4([4]byte(b[16:])) != to {
			continue
		}
		source := netip.AddrFrom4([4]byte(b[12:]))
		if !slices.Contains(from, source) {
			continue
		}
		if kept[source]++; kept[source] <= 50 {
			all = append(all, slices.Clone(b[:size]))
		}
		if missing[source]--; missing[source] <= 0 {
			delete(missing, source)
		}
	}
	return all
}

// replay sends packets, as they are, from a machine that they once passed. The
// interval is between two rounds of all of them; it ends with the channel.
func replay(t *testing.T, n *netlab.Namespace, packets [][]byte, interval time.Duration, end <-chan struct{}) (rounds int) {
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Errorf("open a raw socket on %v: %v", n, err)
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		for _, b := range packets {
			to := &unix.SockaddrInet4{Addr: [4]byte(b[16:])}
			if err := unix.Sendto(fd, b, 0, to); err != nil {
				t.Errorf("send %d bytes again: %v", len(b), err)
				return rounds
			}
		}
		rounds++
		select {
		case <-ticker.C:
		case <-end:
			return rounds
		}
	}
}

// inClear makes packets of forgeries that do not even look like a tunnel's, as if
// gateways had sent them to the worker's ports of their tunnels.
func inClear(captured [][]byte) (all [][]byte) {
	const headers = 28
	made := make(map[string]bool)
	for _, c := range captured {
		if flow := string(c[12:24]); made[flow] { // addresses and ports
			continue
		} else {
			made[flow] = true
		}
		for _, f := range forgeries() {
			b := append(slices.Clone(c[:headers]), f...)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
			binary.BigEndian.PutUint16(b[24:], uint16(len(b)-20))
			clear(b[26:28]) // no UDP checksum
			all = append(all, b)
		}
	}
	return all
}

// forgedAndReplayed sends forgeries from sandboxes, from the far side of their
// connections, and to the worker's tunnels; and to those again what they got before.
func (f *failing) forgedAndReplayed(t *testing.T) {
	before := f.switches(t)
	gateways := []netip.Addr{f.a.addr, f.b.addr, f.c.addr}
	f.recorded = newTap(t, f.hub, "worker").datagrams(t, gateways, workerAddr, 2)
	again := append(inClear(f.recorded), f.recorded...)
	worker := f.attachment(t, acmeFunction, f.boxes[0].inner).Worker
	targets := []string{at(worker, packet.ProbePort), at(innerGateway, packet.ProbePort), at(f.boxes[0].inner, packet.ProbePort), at(workerAddr, packet.ProbePort)}
	end, ended := make(chan struct{}), make(chan int, 1)
	seen := f.toWorker()
	go func() { ended <- replay(t, f.hub, again, 50*time.Millisecond, end) }()
	for _, b := range f.boxes {
		b.must(t, task{Do: "forge", Targets: targets})
	}
	load := f.boxes[0].load(t)
	mapping := netip.AddrPortFrom(load.Sources[0], load.Port)
	for _, b := range forgeries() {
		for _, to := range []netip.AddrPort{mapping, netip.AddrPortFrom(mapping.Addr(), packet.ProbePort)} {
			if _, err := f.origin.packets[0].WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.goesOn(t, 50) // long enough for many probes
	close(end)
	rounds := <-ended
	if n := f.toWorker() - seen; n < uint64(rounds*len(again)) {
		t.Errorf("%d packets arrived at the worker while %d times %d were sent", n, rounds, len(again))
	}
	f.unmoved(t, before)
	t.Logf("%d forgeries in the clear and %d datagrams of before, sent %d times", len(again)-len(f.recorded), len(f.recorded), rounds)
}

// toWorker counts the packets of gateways that went to the worker.
func (f *failing) toWorker() (n uint64) {
	for _, h := range []*gatewayHost{f.a, f.b, f.c} {
		n += f.atWorker.Sources()[netlab.Source{Out: true, Addr: h.addr}]
	}
	return n
}

// forgedByStock has a stock client of the same network send what it likes: from its
// own address, and as if it were the gateway.
func (f *failing) forgedByStock(t *testing.T) {
	requireStock(t)
	before := f.switches(t)
	client := f.attachStock(t, f.a)
	if _, err := client.curl(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	worker := f.attachment(t, acmeFunction, f.boxes[0].inner).Worker
	client.must("ip", "address", "add", netip.PrefixFrom(innerGateway, 32).String(), "dev", client.device)
	for _, from := range []netip.Addr{netip.MustParsePrefix(client.setting("Address")).Addr(), innerGateway} {
		for _, to := range []netip.Addr{worker, f.boxes[0].inner} {
			c, err := client.DialFrom(t.Context(), &net.UDPAddr{IP: from.AsSlice(), Port: packet.ProbePort}, "udp4", at(to, packet.ProbePort))
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range forgeries() {
				_, _ = c.Write(b) // some are refused
			}
			_ = c.Close()
		}
	}
	client.must("ip", "address", "del", netip.PrefixFrom(innerGateway, 32).String(), "dev", client.device)
	f.goesOn(t, 25)
	f.unmoved(t, before)
}
