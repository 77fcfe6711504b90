package gateway

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/tunnel"
)

// metState is siteState whose networks can meet: net_b has another CIDR.
func metState(peerings ...spec.Peering) spec.State {
	s := siteState(peerings...)
	s.Networks[1].CIDR = netip.MustParsePrefix("10.44.0.0/16")
	for _, p := range peerings {
		for i := range s.Networks {
			if n := &s.Networks[i]; n.ID == p.PeerNetwork {
				n.AcceptedPeerings = append(slices.Clone(n.AcceptedPeerings), spec.Acceptance{Peering: p.ID, Network: p.Network})
			}
		}
	}
	return s
}

// unaccepted takes back what networks have said to a peering.
func unaccepted(s spec.State, id string) spec.State {
	for i := range s.Networks {
		n := &s.Networks[i]
		n.AcceptedPeerings = slices.DeleteFunc(n.AcceptedPeerings, func(a spec.Acceptance) bool { return a.Peering == id })
	}
	return s
}

func metPeering(id, from, to string) spec.Peering {
	return spec.Peering{ID: id, Network: from, PeerNetwork: to, Kind: spec.ByNetwork, State: spec.PeeringActive}
}

// server attaches a sandbox that others can begin with, and waits until its host's
// tunnel leads to it.
func (r *region) server(network, host string) *stack {
	r.t.Helper()
	s := r.attach(network, host)
	peers, err := s.tunnel.Peers()
	if err != nil {
		r.t.Fatal(err)
	}
	s.peer(tunnel.Peer{PublicKey: peers[0].PublicKey, AllowedIPs: peers[0].AllowedIPs, Keepalive: time.Second})
	s.serve(host)
	r.hosts[host].await("the server shook hands", func(spec.HostReport, spec.Cursor) bool {
		peers, err := s.tunnel.Peers()
		return err == nil && !peers[0].LastHandshake.IsZero()
	})
	return s
}

// reaches reports whether a connect is answered. The two networks of a connection learn of it one
// after the other.
func (s *stack) reaches(to netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	c, err := s.DialTCP(ctx, at(s.addr, 0), to)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// refused fails the test unless a connect is refused at once.
func (s *stack) refused(to netip.AddrPort) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	c, err := s.DialTCP(ctx, at(s.addr, 0), to)
	if err == nil {
		c.Close()
		s.t.Errorf("%v has reached %v", s.addr, to)
	} else if errors.Is(err, context.DeadlineExceeded) {
		s.t.Errorf("%v is not told that it may not reach %v", s.addr, to)
	}
}

// TestNetworksMeet: sandboxes of a network reach those of another, whichever hosts both
// leave by, with their own addresses; the others answer and do not begin, until a
// connection of theirs is accepted; and what ends is cut at once.
func TestNetworksMeet(t *testing.T) {
	checkLeaks(t)
	there, back := metPeering("peer_ab", "net_a", "net_b"), metPeering("peer_ba", "net_b", "net_a")
	r := newRegion(t, metState(there))
	a := r.hosts["gw-a"]
	servers := map[string]*stack{"gw-a": r.server("net_b", "gw-a"), "gw-b": r.server("net_b", "gw-b")}
	a.await("the site's host knows who is elsewhere", func(spec.HostReport, spec.Cursor) bool {
		m := a.find("net_b").fwd.elsewhere.Load()
		if m == nil {
			return false
		}
		_, elsewhere := (*m)[servers["gw-b"].addr]
		_, here := (*m)[servers["gw-a"].addr]
		return elsewhere && !here
	})
	clients := map[string]*stack{"gw-a": r.server("net_a", "gw-a"), "gw-b": r.server("net_a", "gw-b")}
	var conns []*netstack.Conn
	for _, from := range clients {
		for host, to := range servers {
			c, name := from.dialTo(at(to.addr, database.Port()))
			if name != host {
				t.Errorf("%v reached the server of %s instead of %s", from.addr, name, host)
			}
			echo(t, c, 1<<18)
			conns = append(conns, c)
		}
	}
	for _, from := range servers {
		for _, to := range clients {
			from.refused(at(to.addr, database.Port()))
		}
	}
	for _, network := range []string{"net_a", "net_b"} {
		a.await("both networks count", func(report spec.HostReport, _ spec.Cursor) bool {
			s := siteOf(report, network)
			return s != nil && len(s.Peerings) == 1 && s.Peerings[0].ID == "peer_ab" && s.Peerings[0].Egress.Bytes > 1<<20 && s.Peerings[0].Ingress.Bytes > 1<<20 && s.Peerings[0].Foreign == 0
		})
	}

	// The opposite direction comes and goes without harm to what is open.
	r.replace(metState(there, back))
	a.await("the second connection is up", func(spec.HostReport, spec.Cursor) bool {
		return a.find("net_b").fwd.peered.Load().find(clients["gw-a"].addr) != nil
	})
	r.hosts["gw-b"].await("the second connection is up on the other host", func(spec.HostReport, spec.Cursor) bool {
		return r.hosts["gw-b"].find("net_b").fwd.peered.Load().find(clients["gw-a"].addr) != nil
	})
	for _, from := range servers {
		for _, to := range clients {
			a.await("both networks know of the second connection", func(spec.HostReport, spec.Cursor) bool {
				return from.reaches(at(to.addr, database.Port()))
			})
		}
	}
	for _, from := range servers {
		for host, to := range clients {
			c, name := from.dialTo(at(to.addr, database.Port()))
			if name != host {
				t.Errorf("%v reached the client of %s instead of %s", from.addr, name, host)
			}
			echo(t, c, 1<<16)
			c.Close()
		}
	}
	for _, c := range conns {
		echo(t, c, 1<<10)
	}

	// The owner of the other network takes its word back.
	r.replace(unaccepted(metState(there, back), there.ID))
	for _, host := range []string{"gw-a", "gw-b"} {
		n := r.hosts[host].find("net_a")
		r.hosts[host].await("the first connection has ended", func(spec.HostReport, spec.Cursor) bool {
			return n.fwd.peered.Load().find(servers["gw-a"].addr) == nil
		})
	}
	for _, c := range conns {
		began := time.Now()
		wantReset(t, c)
		if took := time.Since(began); took > 10*time.Second { // TCP itself would try for minutes
			t.Errorf("the reset came after %v", took)
		}
		c.Close()
	}
	clients["gw-a"].refused(at(servers["gw-a"].addr, database.Port()))
	c, _ := servers["gw-b"].dialTo(at(clients["gw-a"].addr, database.Port()))
	c.Close()

	// Its word opens the way, and no restart.
	r.replace(metState(there, back))
	a.await("the connection is accepted", func(spec.HostReport, spec.Cursor) bool {
		return a.find("net_a").fwd.peered.Load().find(servers["gw-a"].addr) != nil && clients["gw-a"].reaches(at(servers["gw-a"].addr, database.Port()))
	})
	c, _ = clients["gw-a"].dialTo(at(servers["gw-a"].addr, database.Port()))
	echo(t, c, 1<<10)
	c.Close()
	r.close()
}

// TestMetSandboxLeaves: who has the address of a sandbox next has nothing of what others
// had with that one.
func TestMetSandboxLeaves(t *testing.T) {
	checkLeaks(t)
	r := newRegion(t, metState(metPeering("peer_ab", "net_a", "net_b")))
	server, client := r.server("net_b", "gw-a"), r.attach("net_a", "gw-a")
	c, _ := client.dialTo(at(server.addr, database.Port()))
	flows := func() (n int) {
		r.hosts["gw-a"].find("net_a").fwd.withPeered(func(t *nat.Table) { n = sessions(t.Stats()) })
		return n
	}
	if flows() != 1 {
		t.Fatalf("%d flows, want 1", flows())
	}
	list := r.store.List("", 100)
	for _, at := range list.Attachments {
		if at.Inner == server.addr {
			if err := r.store.Detach(at.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.hosts["gw-a"].await("the flow has ended", func(spec.HostReport, spec.Cursor) bool { return flows() == 0 })
	wantReset(t, c)
	if err := c.Close(); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	r.close()
}

// TestMetOnOneHost: where a network has no other host, a sandbox that has not shaken hands
// here for long is nowhere else: what others begin with it is not relayed to nobody.
func TestMetOnOneHost(t *testing.T) {
	checkLeaks(t)
	state := metState(metPeering("peer_ab", "net_a", "net_b"))
	for i := range state.Networks {
		state.Networks[i].Hosts = []string{"gw-a", "gw-a"}
	}
	r := newRegion(t, state)
	silent := r.attach("net_b", "gw-a")
	n := r.hosts["gw-a"].find("net_b")
	r.hosts["gw-a"].await("the sandbox is a peer, and others may begin with it", func(spec.HostReport, spec.Cursor) bool {
		peers, err := n.tun.Peers()
		return err == nil && len(peers) > 0 && n.fwd.peered.Load().accepts != nil
	})
	n.locatePeers()
	if p := (packet.Packet{Dst: silent.addr}); n.fwd.isElsewhere(&p) {
		t.Errorf("%v is taken to be at another host; there is none", silent.addr)
	}
	r.close()
}
