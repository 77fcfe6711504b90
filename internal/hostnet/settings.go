package hostnet

import "net/netip"

// linkSysctl is the name of a link's parameter of IPv4. Names of links may contain dots.
func linkSysctl(link, name string) string { return "net/ipv4/conf/" + link + "/" + name }

// ForwardingNeeds returns what has to be set so that the kernel passes on IPv4 packets
// that come in by the links: nothing, if it does.
func ForwardingNeeds(h Host, links ...string) (needs []Sysctl, err error) {
	for _, link := range links {
		v, err := h.Sysctl(linkSysctl(link, "forwarding"))
		if err != nil {
			return nil, err
		}
		if v == "0" {
			needs = append(needs, Sysctl{linkSysctl(link, "forwarding"), "1"})
		}
	}
	if len(needs) == 0 {
		return nil, nil
	}
	all, err := h.Sysctl("net.ipv4.ip_forward")
	if err == nil && all == "0" {
		return []Sysctl{{"net.ipv4.ip_forward", "1"}}, nil
	}
	return needs, err
}

// ReverseNeeds returns what has to be set so that the kernel takes packets from a
// remote address by a link though the main table's way to the remote is another link:
// nothing, if it does. A strict rp_filter refuses them (RFC 3704).
func ReverseNeeds(h Host, link string, remote netip.Addr) ([]Sysctl, error) {
	strict := false
	for _, name := range []string{"all", link} { // the larger one counts
		switch v, err := h.Sysctl(linkSysctl(name, "rp_filter")); {
		case err != nil:
			return nil, err
		case v == "2":
			return nil, nil
		case v == "1":
			strict = true
		}
	}
	if !strict {
		return nil, nil
	}
	back, err := h.LinkTo(remote)
	if err != nil || back == link {
		return nil, err
	}
	return []Sysctl{{linkSysctl(link, "rp_filter"), "2"}}, nil
}
