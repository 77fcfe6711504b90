package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// CheckHost says all that keeps this machine from being the host of the configuration's
// uplink, and of the peerings by an interface whose site it has. It changes nothing, and
// may be asked beside a gateway that runs. The desired state, if it is known, tells the
// dedicated addresses and the peerings. Warnings are about what may be wrong and may be
// meant, or of which the rest does not depend.
func CheckHost(d config.Daemon, state spec.State) (warnings []string, err error) {
	warning, err := checkUplink(d, state)
	if warning != "" {
		warnings = append(warnings, warning)
	}
	if d.Uplink == config.UplinkSockets {
		if err := uplink.CheckEcho(); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	return warnings, errors.Join(err, checkWires(d, state))
}

// checkWires says what keeps peerings by an interface from passing here.
func checkWires(d config.Daemon, state spec.State) error {
	var errs []error
	for _, p := range state.Peerings {
		n, ok := state.Network(p.Network)
		if !ok || n.Region != d.Region || n.Site == nil || n.Site.Host != d.Host || p.By() != spec.ByInterface || state.PeeringState(p) != spec.PeeringActive {
			continue
		}
		if err := uplink.CheckWire(wireConfig(p, n)); err != nil {
			errs = append(errs, fmt.Errorf("peering %s: %w", p.ID, err))
		}
	}
	return errors.Join(errs...)
}

// checkUplink is CheckHost of the uplink alone.
func checkUplink(d config.Daemon, state spec.State) (warning string, err error) {
	tun := d.Uplink == config.UplinkTun
	if !tun && d.Sockets.AddAddressesTo == "" {
		return "", socketsFind(d, state)
	}
	kernel, err := hostnet.Here()
	if err != nil {
		return "", fmt.Errorf("open the host's network stack: %w", err)
	}
	defer kernel.Close()
	s := &hostSide{daemon: d, host: kernel}
	errs := []error{kernel.Permitted(s.announcesOn())}
	if tun {
		needs, err := s.needs()
		if len(needs) > 0 && !d.Tun.SetSysctls {
			err = errors.Join(err, s.unset(needs))
		}
		if err == nil {
			warning, err = s.nextHop()
		}
		errs = append(errs, uplink.CheckTun(), err, runnable(d.Tun.Hook))
	} else if link, err := kernel.Links(); err != nil || !slices.Contains(link, d.Sockets.AddAddressesTo) {
		errs = append(errs, errors.Join(err, fmt.Errorf("there is no interface %s (sockets.add_addresses_to)", d.Sockets.AddAddressesTo)))
	}
	for _, held := range heldHere(d, state) {
		errs = append(errs, s.free(held))
	}
	if err := errors.Join(errs...); err != nil {
		return warning, fmt.Errorf("this host: %w; %s", err, s.otherMode())
	}
	return warning, nil
}

// onLinks are hosts that know who is on a link.
type onLinks interface {
	OnLink(link string, a netip.Addr) (bool, error)
}

// nextHop says why tun.next_hop can be none, or why it may not be one: the kernel takes a
// router that no address or route of the link speaks of, and asks for it by ARP; but it
// takes no address of the interface itself.
func (s *hostSide) nextHop() (warning string, err error) {
	t := s.daemon.Tun
	if !t.NextHop.IsValid() {
		return "", nil
	}
	own, err := s.host.LinkOf(t.NextHop)
	if err != nil {
		return "", err
	}
	if own == t.Interface {
		return "", fmt.Errorf("next hop %v (tun.next_hop) is an address of interface %s of this host itself: write that of the router there", t.NextHop, own)
	}
	kernel, ok := s.host.(onLinks)
	if !ok {
		return "", nil
	}
	if on, err := kernel.OnLink(t.Interface, t.NextHop); on || err != nil {
		return "", err
	}
	return fmt.Sprintf("next hop %v (tun.next_hop) is not on the link of interface %s (`ip address show %s`, `ip route get %v`): packets from dedicated addresses leave only if a router there answers ARP for it; else correct tun.next_hop",
		t.NextHop, t.Interface, t.Interface, t.NextHop), nil
}

// socketsFind says which dedicated addresses are not on this machine, to which whoever
// may has to add them.
func socketsFind(d config.Daemon, state spec.State) error {
	var errs []error
	for _, held := range heldHere(d, state) {
		for _, a := range held {
			errs = append(errs, uplink.CheckAddress(a))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("this host: %w", err)
	}
	return nil
}

// heldHere are the dedicated addresses that this host holds, by network.
func heldHere(d config.Daemon, state spec.State) (list [][]netip.Addr) {
	for _, n := range state.Networks {
		if n.Region != d.Region {
			continue
		}
		var held [2]bool
		for i, name := range state.HostsOf(n) {
			held[i] = name == d.Host
		}
		list = append(list, heldOf(n, held))
	}
	return list
}

// runnable says why a hook cannot be run.
func runnable(program string) error {
	if program == "" {
		return nil
	}
	if err := unix.Access(program, unix.X_OK); err != nil {
		return fmt.Errorf("tun.hook %s cannot be run: %w", program, err)
	}
	return nil
}

// announcesOn is the interface on which addresses are announced, if they are.
func (s *hostSide) announcesOn() string {
	switch d := s.daemon; {
	case d.Uplink == config.UplinkTun && d.Tun.AnnounceARP:
		return d.Tun.Interface
	case d.Uplink == config.UplinkSockets && d.Sockets.AddAddressesTo != "lo":
		return d.Sockets.AddAddressesTo
	}
	return ""
}

// check says what is in the way of a network's addresses before anything is changed.
func (s *hostSide) check(held []netip.Addr) error {
	if s.host == nil {
		return nil
	}
	if err := s.free(held); err != nil || s.daemon.Uplink != config.UplinkTun {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkSettings()
}

// free says which of the addresses are where they must not be.
func (s *hostSide) free(held []netip.Addr) error {
	for _, a := range held {
		link, err := s.host.LinkOf(a)
		switch {
		case err != nil:
			return err
		case link == "":
		case s.daemon.Uplink == config.UplinkTun:
			return fmt.Errorf("dedicated address %v is on interface %s of this host, whose kernel would keep its packets for itself: remove it there (`ip address del %v/32 dev %s`), or write `uplink: sockets`", a, link, a, link)
		case link != s.daemon.Sockets.AddAddressesTo:
			return fmt.Errorf("dedicated address %v is on interface %s of this host already, not on %s: remove it there, or leave sockets.add_addresses_to out", a, link, s.daemon.Sockets.AddAddressesTo)
		}
	}
	return nil
}

// far is an address that packets from dedicated addresses go to.
func (s *hostSide) far() (a netip.Addr, ok bool) {
	if len(s.daemon.DNS.Upstreams) > 0 {
		a = s.daemon.DNS.Upstreams[0].Addr()
	}
	return a, a.IsValid() && !a.IsLoopback()
}

// anywhere stands for the Internet where no resolver does, because they are on this host:
// the way to it is looked up, and nothing is sent there (RFC 5737, TEST-NET-1).
var anywhere = netip.AddrFrom4([4]byte{192, 0, 2, 1})

// needs looks at the settings by which the kernel would refuse to pass packets on, and
// notes by which interface they come in.
func (s *hostSide) needs() ([]hostnet.Sysctl, error) {
	t := s.daemon.Tun
	link := t.Interface
	remote, ok := s.far()
	if link == "" {
		to := remote
		if !ok {
			to = anywhere
		}
		var err error
		if link, err = s.host.LinkTo(to); err != nil && ok {
			return nil, fmt.Errorf("find the interface of this host's uplink: %w; name it as tun.interface", err)
		}
	}
	if s.link = link; link == "" {
		return nil, nil
	}
	needs, err := hostnet.ForwardingNeeds(s.host, link)
	if err != nil {
		return nil, fmt.Errorf("interface %s (tun.interface): is it there? %w", link, err)
	}
	// With a table of their own, packets from an address and the way back to it agree.
	if t.Table == 0 && ok {
		reverse, err := hostnet.ReverseNeeds(s.host, link, remote)
		if err != nil {
			return nil, err
		}
		needs = append(needs, reverse...)
	}
	return needs, nil
}

// unset is the error of settings that the gateway needs and may not set.
func (s *hostSide) unset(needs []hostnet.Sysctl) error {
	var commands []string
	for _, n := range needs {
		commands = append(commands, fmt.Sprintf("`sysctl -w %s=%s`", n.Name, n.Value))
	}
	return fmt.Errorf("this host's kernel would not pass on what comes in by %s: run %s and keep it in /etc/sysctl.d, or write `tun: {set_sysctls: true}`",
		s.link, strings.Join(commands, " and "))
}

// checkSettings sets what is needed where it is allowed to, and names it else.
func (s *hostSide) checkSettings() error {
	needs, err := s.needs()
	if err != nil {
		return fmt.Errorf("%w; %s", err, s.otherMode())
	}
	if len(needs) == 0 {
		return nil
	}
	if !s.daemon.Tun.SetSysctls {
		return fmt.Errorf("%w; %s", s.unset(needs), s.otherMode())
	}
	if err := s.host.Apply(hostnet.Plan{Sysctls: needs}); err != nil {
		return fmt.Errorf("tun.set_sysctls: %w; %s", err, s.otherMode())
	}
	s.log.Warn("sysctls of this host set, as tun.set_sysctls allows; they stay", "sysctls", fmt.Sprint(needs))
	return nil
}

// ways says whether packets from a network's addresses would leave by another way than
// that of their table: a rule of somebody else's may come before ours.
func (s *hostSide) ways(id string, held []netip.Addr) error {
	t := s.daemon.Tun
	remote, ok := s.far()
	if s.daemon.Uplink != config.UplinkTun || t.Table == 0 || !ok {
		return nil
	}
	for _, a := range held {
		out, err := s.host.Trace(a, remote, linkName(id))
		if err != nil {
			if other := s.free([]netip.Addr{a}); other != nil {
				return other // the kernel says of its own addresses that they are no source
			}
			return fmt.Errorf("packets from dedicated addresses find no way by table %d (tun.table): %w; see `ip rule` and `ip route show table %d`", t.Table, err, t.Table)
		}
		if t.NextHop.IsValid() && out != t.Interface && out != "lo" {
			return fmt.Errorf("packets from %v to %v would leave by %s and not by %s (tun.interface): a rule comes before priority %d, see `ip rule`: remove it, or give it a larger number", a, remote, out, t.Interface, rulePriority)
		}
	}
	return nil
}

// passes says what became of the interface by which addresses are reached.
func (s *hostSide) passes() error {
	if s.link == "" {
		return nil
	}
	needs, err := hostnet.ForwardingNeeds(s.host, s.link)
	if err != nil {
		return fmt.Errorf("interface %s: is it gone? %w", s.link, err)
	}
	for _, n := range needs {
		return fmt.Errorf("the kernel passes on nothing that comes in by %s: set %s=%s", s.link, n.Name, n.Value)
	}
	return nil
}
