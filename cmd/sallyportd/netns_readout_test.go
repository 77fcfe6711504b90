package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/gateway/readout"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// cliOn runs the sallyport command on a machine, as an operator does there.
func (e *estate) cliOn(n *netlab.Namespace, args ...string) (string, error) {
	cmd := exec.CommandContext(e.t.Context(), filepath.Join(e.bin, "sallyport"), args...)
	cmd.Env = append(os.Environ(), "SALLYPORT_API=unix://"+filepath.Join(e.dir, "run/api.sock"), "SALLYPORT_TOKEN_FILE="+filepath.Join(e.dir, "token"))
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := n.Run(cmd); err != nil {
		return out.String(), fmt.Errorf("sallyport %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return out.String(), nil
}

// judgeReadouts asks a gateway, as an operator does on its host, about the one connection
// that a sandbox has to the origin's echo; from says where it leaves.
func judgeReadouts(t *testing.T, e *estate, on *gatewayHost, inner netip.Addr, from netip.AddrPort) {
	t.Helper()
	echo := at(originAddr, portEcho)
	must := func(args ...string) string {
		t.Helper()
		out, err := e.cliOn(on.Namespace, args...)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	var p readout.Ports
	if err := json.Unmarshal([]byte(must("ports", "net-acme", "--destination", echo, "--output", "json")), &p); err != nil || len(p.IPs) != 1 {
		t.Fatalf("ports: %+v, %v", p, err)
	}
	d := p.IPs[0].Destination
	if d == nil || d.Used != 1 || d.Users != 1 || d.Left < 60_000 || p.IPs[0].IP != from.Addr() || len(d.Sandboxes) != 1 || d.Sandboxes[0].Inner != inner {
		t.Errorf("of %s it says %+v", echo, d)
	}
	tables := must("ports", "net-acme", "--destination", echo, "--names")
	text := strings.Join(strings.Fields(tables), " ")
	for _, want := range []string{
		fmt.Sprintf("PORTS LEFT SANDBOXES %v tcp %s 1 0 %d 1 DEDICATED", from.Addr(), echo, d.Left),
		fmt.Sprintf("KIND %v %v 1 shop production function DEDICATED", from.Addr(), inner),
		"The network's other dedicated IP is not on this host",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in\n%s", want, tables)
		}
	}
	listed := must("sessions", "net-acme", "--inner", inner.String(), "--destination", echo)
	if text := strings.Join(strings.Fields(listed), " "); !strings.Contains(text, fmt.Sprintf("tcp %v:", inner)) ||
		!strings.Contains(text, fmt.Sprintf(" %v %s established ", from, echo)) || !strings.Contains(text, " 1 listed.") {
		t.Errorf("sessions are\n%s", listed)
	}
	var s readout.Session
	all := must("sessions", "net-acme", "--inner", inner.String(), "--all", "--output", "json")
	for line := range strings.Lines(all) {
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.Inner.Addr() != inner {
			t.Errorf("%q: %+v, %v", line, s, err)
		}
	}
	if !strings.Contains(all, `"external":"`+from.String()+`","remote":"`+echo+`"`) {
		t.Errorf("sessions in JSON are\n%s", all)
	}
	t.Logf("\n%s\n%s", tables, listed)

	if _, err := e.cliOn(on.Namespace, "ports", "net-none"); err == nil || !strings.Contains(err.Error(), "it serves net-acme, ") {
		t.Errorf("of a network that is not there: %v", err)
	}
	elsewhere := netip.AddrPortFrom(on.addr, 9469).String()
	if _, err := e.cliOn(e.worker, "ports", "net-acme", "--admin", elsewhere); err == nil || !strings.Contains(err.Error(), "no address of this machine") {
		t.Errorf("from another machine: %v", err)
	}
}
