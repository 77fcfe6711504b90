package hostnet

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Permitted says why this process may not change routes and the like in the namespace,
// or, with a link, may not announce addresses there. It changes nothing.
func (k *Kernel) Permitted(announceOn string) error {
	// The kernel asks for the privilege before it looks for the route, which nobody has.
	nobodys := Route{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 32), Kind: Blackhole, Metric: 1<<31 - 1}
	if err := k.undoRoute(nobodys, minTag); err != nil {
		return failed("look whether routes may be changed", err)
	}
	if announceOn == "" {
		return nil
	}
	tried := "look whether addresses may be announced on " + announceOn
	mac, err := k.HardwareAddr(announceOn)
	if err != nil {
		return err
	}
	if len(mac) != 6 {
		return fmt.Errorf("hostnet: %s: it is no Ethernet link", tried)
	}
	return k.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("hostnet: %s: open a packet socket, which needs CAP_NET_RAW: %w", tried, err)
		}
		return unix.Close(fd)
	})
}
