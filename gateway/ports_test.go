package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestPortsDependOnIDsAlone(t *testing.T) {
	var ids []string
	for i := range 500 {
		ids = append(ids, fmt.Sprintf("net_%d", i))
	}
	r := portRange{First: 51820, Last: 52319} // exactly as many as networks
	a, err := assignPorts(ids, r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint16]string{}
	for id, p := range a {
		if p < r.First || p > r.Last {
			t.Errorf("%s got port %d outside the range", id, p)
		}
		if other, ok := seen[p]; ok {
			t.Errorf("%s and %s share port %d", id, other, p)
		}
		seen[p] = id
	}
	slices.Reverse(ids)
	b, err := assignPorts(ids, r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(a, b) {
		t.Error("the order of the ids changed the ports")
	}
}

func TestPortsRangeTooSmall(t *testing.T) {
	_, err := assignPorts([]string{"a", "b"}, portRange{First: 1000, Last: 1000}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "wireguard.ports") {
		t.Fatalf("error %v does not name the setting", err)
	}
}

// TestPortsStay: a new network never moves another's tunnels.
func TestPortsStay(t *testing.T) {
	r := portRange{First: 1000, Last: 1009}
	held, err := assignPorts([]string{"net_m", "net_n", "net_o"}, r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{"net_a", "net_b", "net_c", "net_d", "net_e", "net_m", "net_o", "net_x", "net_y", "net_z"}
	ports, err := assignPorts(ids, r, held, nil)
	if err != nil {
		t.Fatal(err)
	}
	used := map[uint16]bool{}
	for _, p := range ports {
		used[p] = true
	}
	if len(used) != len(ids) || ports["net_m"] != held["net_m"] || ports["net_o"] != held["net_o"] {
		t.Errorf("ports %v are not distinct, or differ from %v", ports, held)
	}
}
