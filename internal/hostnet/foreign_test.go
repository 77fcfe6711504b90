package hostnet_test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// A pipe is not waited for, and what it is is said.
func TestOpenNamespaceDoesNotWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := hostnet.OpenNamespace(path); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
		t.Errorf("a pipe: %v", err)
	}
}

func TestForeignNamespace(t *testing.T) {
	lab := netlab.Test(t)
	from, to := lab.Namespace("from"), lab.Namespace("to")
	pair := hostnet.Plan{Links: []hostnet.Link{{Name: "a", Veth: &hostnet.VethPeer{Name: "b"}}, {Name: "b"}}}
	if err := from.Host().Apply(pair); err != nil {
		t.Fatal(err)
	}
	if err := from.Host().Send("a", to.Host(), "moved"); err != nil {
		t.Fatal(err)
	}
	links, err := to.Host().Links()
	if err != nil || !slices.Contains(links, "moved") || slices.Contains(links, "a") {
		t.Errorf("links %v, %v; want the one that moved", links, err)
	}
	if err := from.Host().Send("none", to.Host(), "x"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a link that is not there: %v", err)
	}
	if all, err := to.Host().Defaults(); err != nil || len(all) != 0 {
		t.Errorf("default routes %v, %v", all, err)
	}
	router := netip.MustParseAddr("192.0.2.1")
	way := hostnet.Route{Prefix: hostnet.DefaultIPv4, Link: "moved", Via: router, Metric: 7}
	err = to.Host().Apply(hostnet.Plan{
		Links:     []hostnet.Link{{Name: "moved"}},
		Addresses: []hostnet.Address{{Link: "moved", Prefix: netip.MustParsePrefix("192.0.2.2/32")}},
		Routes:    []hostnet.Route{way, {Prefix: hostnet.DefaultIPv4, Kind: hostnet.Unreachable, Metric: 9}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := to.Host().Defaults(); err != nil || !slices.Equal(all, []hostnet.Route{way}) {
		t.Errorf("default routes %v, %v; want %v", all, err, way)
	}
	if err := to.Host().Bridge("br0", "moved"); err != nil {
		t.Error(err)
	}
	if err := to.Host().Bridge("br1", "none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a bridge of what is not there: %v", err)
	}
	one, err1 := from.Net().ID()
	again, err2 := from.Net().ID()
	other, err3 := to.Net().ID()
	if err1 != nil || err2 != nil || err3 != nil || one != again || one == other {
		t.Errorf("IDs %v, %v and %v", one, again, other)
	}
}
