package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// The formats of --format.
const (
	formatTable   = "table"
	formatWGQuick = "wg-quick"
)

// keepalive is how often a stock client sends, in seconds, so that NATs between it
// and the gateway keep its port. It is what wg(8) recommends.
const keepalive = 25

// checkFormat checks --format beside --output.
func (g *globals) checkFormat(format string) error {
	if format != formatTable && format != formatWGQuick {
		return fmt.Errorf("--format: there is no format %q; use %s or %s", format, formatTable, formatWGQuick)
	}
	if format == formatWGQuick && g.output == "json" {
		return errors.New("--format wg-quick and --output json ask for two different texts; leave out one of them")
	}
	return nil
}

// wgConfig is the text of a configuration that wg-quick(8) reads. wg-quick runs
// parts of it as root, line by line: so nothing that the control plane says may
// begin a line of its own.
type wgConfig struct {
	text strings.Builder
	err  error
}

func (c *wgConfig) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) && c.err == nil {
		c.err = fmt.Errorf("the control plane's answer holds characters that no configuration of WireGuard may have: %q", text)
	}
	c.text.WriteString(text)
	c.text.WriteByte('\n')
}

func (c *wgConfig) print(w io.Writer) error {
	if c.err != nil {
		return c.err
	}
	_, err := io.WriteString(w, c.text.String())
	return err
}

// peer writes the section of the one peer that all of these configurations have.
func (c *wgConfig) peer(key string, endpoint netip.AddrPort, allowed netip.Prefix) {
	if err := spec.CheckPublicKey(key); err != nil && c.err == nil {
		c.err = fmt.Errorf("the gateway's key in the control plane's answer: %w", err)
	}
	if !endpoint.IsValid() && c.err == nil {
		c.err = errors.New("the control plane's answer has no endpoint for the gateway; check wireguard.address in the host's configuration")
	}
	c.line("[Peer]")
	c.line("PublicKey = %s", key)
	c.line("Endpoint = %v", endpoint)
	c.line("AllowedIPs = %v", allowed)
	c.line("PersistentKeepalive = %d", keepalive)
}

// sandboxConfig makes the configuration of a stock client that is a sandbox. The
// private key is empty where the caller has it.
func sandboxConfig(resp api.AttachResponse, private string) (*wgConfig, error) {
	a, n := resp.Attachment, resp.Network
	if a.Bypass != "" {
		return nil, fmt.Errorf("the sandbox bypasses (%s): there is no tunnel to configure; attach it as another kind or runtime", a.Bypass)
	}
	if len(resp.Gateways) == 0 {
		return nil, errors.New("the control plane names no gateway for the sandbox; is it one of this version?")
	}
	gw := resp.Gateways[0]
	c := &wgConfig{}
	// What follows goes into a command.
	for _, word := range []string{a.ID, a.Project, a.Environment, a.Region, string(a.Kind), a.Runtime} {
		if !spec.ValidID(word) && !spec.ValidLabel(word) && !spec.ValidRuntime(word) {
			return nil, fmt.Errorf("the control plane's answer holds %q, which names nothing; is it one of this version?", word)
		}
	}
	if err := spec.CheckPublicKey(a.PublicKey); err != nil || !a.Inner.Is4() {
		return nil, fmt.Errorf("the control plane's answer has key %q and address %v for the sandbox, which cannot be; is it one of this version?", a.PublicKey, a.Inner)
	}
	c.line("# Sandbox %s in network %s: leaves from %v, by gateway %s.", a.ID, n.ID, gw.EgressIP, gw.Host)
	c.line("# `sallyport detach %s` ends it.", a.ID)
	c.line("# A control plane that was started anew does not know it. Gateways do for 15 s;")
	c.line("# this keeps it attached, or brings it back if nobody has its address by then:")
	c.line("#   sallyport attach --project %s --environment %s --region %s --kind %s --runtime %s --public-key %s --resume %s --inner-address %v",
		a.Project, a.Environment, a.Region, a.Kind, a.Runtime, a.PublicKey, a.ID, a.Inner)
	c.line("# IPv6 is not carried. Where this machine has it, turn it off, or add ::/0 to")
	c.line("# AllowedIPs: then it ends in the tunnel and does not pass beside it.")
	c.line("[Interface]")
	if private != "" {
		c.line("PrivateKey = %s", private)
	} else {
		c.line("# PrivateKey = the one whose public key is %s", a.PublicKey)
	}
	c.line("Address = %v", netip.PrefixFrom(a.Inner, a.Inner.BitLen()))
	c.line("DNS = %s", joined(n.DNS))
	c.line("MTU = %d", n.MTU)
	c.line("")
	c.peer(gw.PublicKey, gw.Endpoint, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	return c, nil
}

// peeringConfig makes the configuration of a peering's other side.
func peeringConfig(p api.PeeringStatus) (*wgConfig, error) {
	if p.By() != spec.ByWireGuard {
		return nil, fmt.Errorf("peering %q is of kind %s: there is no WireGuard to configure; `sallyport peering show %s` shows the routes that the other side needs", p.ID, p.By(), p.ID)
	}
	if p.State != spec.PeeringActive {
		return nil, fmt.Errorf("peering %q is in state %s: nothing passes, and there is nothing to configure, until it is active", p.ID, p.State)
	}
	if p.SitePublicKey == "" || !p.SiteEndpoint.IsValid() {
		return nil, fmt.Errorf("host %q has not reported the site tunnel of network %q yet; check that sallyportd runs there and follows this control plane (`sallyport status` shows its last report), and ask again", p.Host, p.Network)
	}
	c := &wgConfig{}
	c.line("# Peering %s with network %s: the other side of its site tunnel.", p.ID, p.Network)
	c.line("#")
	c.line("# The private key is the one whose public key is")
	c.line("#   %s", p.PublicKey)
	c.line("# It is in /etc/wireguard/INTERFACE.key, where INTERFACE is the name of this file")
	c.line("# without .conf. That is how such a key is made (ours must be told of a new one):")
	c.line("#   umask 077; wg genkey > /etc/wireguard/INTERFACE.key; wg pubkey < /etc/wireguard/INTERFACE.key")
	c.line("#")
	c.line("# wg-quick routes %v into the tunnel on this machine. It must forward packets", p.NetworkCIDR)
	c.line("# (sysctl net.ipv4.ip_forward=1), and the other routers on this side need the route")
	c.line("#   ip route add %v via ADDRESS-OF-THIS-MACHINE", p.NetworkCIDR)
	c.line("#")
	c.line("# Packets may come from these ranges of this side; all others are dropped:")
	for _, cidr := range p.CIDRs {
		c.line("#   %v", cidr)
	}
	c.line("# Only the sandboxes of the network start connections.")
	c.line("[Interface]")
	c.line("PostUp = wg set %%i private-key /etc/wireguard/%%i.key")
	if p.Endpoint.IsValid() {
		c.line("ListenPort = %d", p.Endpoint.Port())
	}
	c.line("MTU = %d", spec.TunnelMTU)
	c.line("")
	c.peer(p.SitePublicKey, p.SiteEndpoint, p.NetworkCIDR)
	return c, nil
}
