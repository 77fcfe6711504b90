package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/tunnel"
)

// offloads is what the kernel does for one network, and what it gave its tunnels. It is
// comparable: on a host it is the same for all networks, as a rule, and is said once.
type offloads struct {
	gso, gro      bool // all sockets have it
	receive, send int  // least of all sockets', in bytes
	uplink        uplink.Offload
}

// offloadsOf joins what sockets have; false: there is none.
func offloadsOf(states []tunnel.SocketState, up uplink.Offload) (offloads, bool) {
	if len(states) == 0 {
		return offloads{}, false
	}
	o := offloads{gso: true, gro: true, receive: states[0].ReceiveBuffer, send: states[0].SendBuffer, uplink: up}
	for _, s := range states {
		o.gso, o.gro = o.gso && s.GSO, o.gro && s.GRO
		o.receive, o.send = min(o.receive, s.ReceiveBuffer), min(o.send, s.SendBuffer)
	}
	return o, true
}

// offloads asks the kernel about the sockets of the network's tunnels as they are now.
func (n *network) offloads() (offloads, bool) {
	n.siteMu.Lock()
	defer n.siteMu.Unlock()
	states, err := n.tun.Sockets()
	if n.site != nil {
		more, siteErr := n.site.tun.Sockets()
		states, err = append(states, more...), errors.Join(err, siteErr)
	}
	return n.offloadsBy(states, err)
}

func (n *network) offloadsBy(states []tunnel.SocketState, err error) (offloads, bool) {
	if err != nil {
		n.log.Debug("sockets of a tunnel cannot be asked", "error", err)
	}
	return offloadsOf(states, n.up.Stats().Offload)
}

// tellOffloads says what the kernel does for the host's networks, where that was not said.
// Site tunnels are not asked, whose sockets have the same: siteMu may be held for seconds
// while interfaces of peerings are set up, and whoever tells starts networks, too.
func (h *Host) tellOffloads(told map[offloads]struct{}) {
	fresh := make(map[offloads]int)
	for _, n := range h.list() {
		o, ok := n.offloadsBy(n.tun.Sockets())
		if _, said := told[o]; ok && !said {
			fresh[o]++
		}
	}
	for o, networks := range fresh {
		told[o] = struct{}{}
		o.tell(h.cfg.Log.With("networks", networks), h.cfg.Daemon)
	}
}

// TellProbe says what the kernel would do for a network's tunnel and uplink here.
func TellProbe(d config.Daemon, log *slog.Logger) error {
	states, err := tunnel.Probe(tunnelOffload(d))
	if err != nil {
		return err
	}
	o, ok := offloadsOf(states, uplink.Offload{})
	if !ok {
		return errors.New("this machine has neither IPv4 nor IPv6 sockets")
	}
	o.tellSockets(log, d)
	return nil
}

// tunnelOffload is what the settings do not ask of the kernel for tunnels' sockets.
func tunnelOffload(d config.Daemon) tunnel.Offload {
	return tunnel.Offload{NoGSO: d.WireGuard.NoGSO, NoGRO: d.WireGuard.NoGRO}
}

// tell logs a line for each thing that costs when it is off.
func (o offloads) tell(log *slog.Logger, d config.Daemon) {
	o.tellSockets(log, d)
	if d.Uplink == config.UplinkTun {
		log.Info("TUN interfaces", "vnet_headers", onOff(o.uplink.VNet, d.Tun.NoOffload, "tun.offload"),
			"tso", onOff(o.uplink.TCP, d.Tun.NoOffload, "tun.offload"), "uso", onOff(o.uplink.UDP, d.Tun.NoOffload, "tun.offload"))
	}
}

func (o offloads) tellSockets(log *slog.Logger, d config.Daemon) {
	log.Info("WireGuard sockets", "gso", onOff(o.gso, d.WireGuard.NoGSO, "wireguard.gso"), "gro", onOff(o.gro, d.WireGuard.NoGRO, "wireguard.gro"),
		"receive_buffer", o.receive, "send_buffer", o.send, "asked", tunnel.SocketBuffer)
	var limits, mend []string
	for _, b := range []struct {
		granted int
		sysctl  string
	}{{o.receive, "rmem_max"}, {o.send, "wmem_max"}} {
		if b.granted < tunnel.SocketBuffer {
			limits = append(limits, coreSetting(b.sysctl))
			mend = append(mend, fmt.Sprintf("net.core.%s=%d", b.sysctl, tunnel.SocketBuffer))
		}
	}
	if len(limits) > 0 {
		log.Warn("the kernel gives WireGuard sockets smaller buffers than they ask for: bursts may be lost in them",
			"limited_by", strings.Join(limits, " "), "mend", "sysctl -w "+strings.Join(mend, " ")+", kept in /etc/sysctl.d, and a restart; or CAP_NET_ADMIN")
	}
}

// onOff says whether something is on, and who switched it off.
func onOff(on, switchedOff bool, key string) string {
	switch {
	case on:
		return "on"
	case switchedOff:
		return "off: " + key + " is false"
	}
	return "off: the kernel or the link cannot"
}

// coreSetting is a sysctl of net.core with its value, where that can be read: network
// namespaces do not show it on all kernels.
func coreSetting(name string) string {
	value, err := os.ReadFile("/proc/sys/net/core/" + name)
	if err != nil {
		return "net.core." + name
	}
	return "net.core." + name + "=" + strings.TrimSpace(string(value))
}
