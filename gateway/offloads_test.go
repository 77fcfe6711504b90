package gateway

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/tunnel"
)

// What is off or too small is said with its reason and what to do; of several sockets the
// worst counts.
func TestTellOffloads(t *testing.T) {
	const whole = tunnel.SocketBuffer
	for _, c := range []struct {
		name     string
		states   []tunnel.SocketState
		up       uplink.Offload
		d        config.Daemon
		want     []string
		warnings int
	}{
		{"all there", []tunnel.SocketState{{GSO: true, GRO: true, ReceiveBuffer: whole, SendBuffer: whole}}, uplink.Offload{},
			config.Daemon{Uplink: config.UplinkSockets}, []string{"gso=on gro=on receive_buffer=7340032 send_buffer=7340032 asked=7340032"}, 0},
		{"the worst counts", []tunnel.SocketState{{GSO: true, GRO: true, ReceiveBuffer: whole, SendBuffer: whole}, {GRO: true, ReceiveBuffer: 212992, SendBuffer: whole}}, uplink.Offload{},
			config.Daemon{}, []string{`gso="off: the kernel or the link cannot" gro=on receive_buffer=212992`, "limited_by=", "net.core.rmem_max", "sysctl -w net.core.rmem_max=7340032,"}, 1},
		{"switched off", []tunnel.SocketState{{ReceiveBuffer: 1, SendBuffer: 1}}, uplink.Offload{VNet: true, TCP: true},
			config.Daemon{Uplink: config.UplinkTun, WireGuard: config.WireGuard{NoGSO: true, NoGRO: true}},
			[]string{`gso="off: wireguard.gso is false" gro="off: wireguard.gro is false"`, "rmem_max=7340032 net.core.wmem_max=7340032,", `vnet_headers=on tso=on uso="off: the kernel`}, 1},
		{"tun switched off", []tunnel.SocketState{{ReceiveBuffer: whole, SendBuffer: whole}}, uplink.Offload{},
			config.Daemon{Uplink: config.UplinkTun, Tun: config.Tun{NoOffload: true}}, []string{`tso="off: tun.offload is false"`}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			o, ok := offloadsOf(c.states, c.up)
			if !ok {
				t.Fatal("nothing is known")
			}
			o.tell(slog.New(slog.NewTextHandler(&out, nil)), c.d)
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("got %s\nwant %q in it", out.String(), want)
				}
			}
			if n := strings.Count(out.String(), "level=WARN"); n != c.warnings {
				t.Errorf("%d warnings in %s", n, out.String())
			}
		})
	}
	if _, ok := offloadsOf(nil, uplink.Offload{}); ok {
		t.Error("something is known of no socket")
	}
}

// Who tells starts networks as well, and waits for no site that is being set up.
func TestTellingWaitsForNoSite(t *testing.T) {
	checkLeaks(t)
	r := newHostRig(t, testState(testNetwork("net_a", 1)))
	n := r.find("net_a")
	n.siteMu.Lock()
	told := make(chan map[offloads]struct{}, 1)
	go func() {
		all := make(map[offloads]struct{})
		r.host.tellOffloads(all)
		told <- all
	}()
	select {
	case all := <-told:
		if len(all) != 1 {
			t.Errorf("told %v", all)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is told while a site is being set up")
	}
	n.siteMu.Unlock()
	r.close()
}
