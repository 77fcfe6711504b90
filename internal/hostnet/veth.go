package hostnet

import "net"

// VethEnd is one end of a veth pair.
type VethEnd struct {
	Namespace *Namespace
	Name      string
	MAC       net.HardwareAddr // nil for a random one
}

// VethPair makes a veth pair between two namespaces, or within one. Both ends
// are down and keep their offloads; a Plan for each namespace brings them up.
// The pair ends with either end or either namespace.
func VethPair(a, b VethEnd) error {
	l := Link{Name: a.Name, MAC: a.MAC, Veth: &VethPeer{Name: b.Name, MAC: b.MAC, Namespace: b.Namespace}}
	if err := (Plan{Links: []Link{l}}).validate(); err != nil {
		return err
	}
	k, err := a.Namespace.Host()
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	if err := k.addVeth(l); err != nil {
		return failed("apply link "+a.Name, err)
	}
	return nil
}
