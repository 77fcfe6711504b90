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
	r := PortRange{First: 51820, Last: 52319} // exactly as many as networks
	a, err := assignPorts(ids, r)
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
	b, err := assignPorts(ids, r)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(a, b) {
		t.Error("the order of the ids changed the ports")
	}
}

func TestPortsRangeTooSmall(t *testing.T) {
	_, err := assignPorts([]string{"a", "b"}, PortRange{First: 1000, Last: 1000})
	if err == nil || !strings.Contains(err.Error(), "wireguard.ports") {
		t.Fatalf("error %v does not name the setting", err)
	}
}
