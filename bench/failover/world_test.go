package failover

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// testWorld is a world that ends with the test.
func testWorld(t *testing.T) *world {
	t.Helper()
	netlab.Require(t)
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// direct is the function as a process on the worker, without a sandbox.
type direct struct {
	t       *testing.T
	cmd     *exec.Cmd
	in      io.WriteCloser
	orders  *json.Encoder
	replies *json.Decoder
}

func startDirect(t *testing.T, w *world) *direct {
	t.Helper()
	d := &direct{t: t, cmd: exec.Command("/proc/self/exe", "-test.run=^TestHelperFunction$")}
	d.cmd.Env = append(os.Environ(), "FAILOVER_HELPER=function")
	in, err := d.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.worker.Start(d.cmd); err != nil {
		t.Fatal(err)
	}
	d.in, d.orders, d.replies = in, json.NewEncoder(in), json.NewDecoder(out)
	return d
}

func (d *direct) do(what order) (r reply) {
	d.t.Helper()
	if err := d.orders.Encode(what); err != nil {
		d.t.Fatal(err)
	}
	if err := d.replies.Decode(&r); err != nil {
		d.t.Fatal(err)
	}
	return r
}

// end closes the function's input, which ends it well.
func (d *direct) end() {
	d.t.Helper()
	if err := d.in.Close(); err != nil {
		d.t.Error(err)
	}
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("the function ended: %v", err)
	}
}

// The function, the origin and the judge without any tunnel: what leaves the
// worker directly is seen as such.
func TestFunctionAndJudge(t *testing.T) {
	w := testWorld(t)
	o, err := startOrigin(w.origin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := o.close(); err != nil {
			t.Error(err)
		}
	}()
	f, self := startDirect(t, w), workerLink.Addr()
	for _, what := range []order{{Do: doPace, Every: 2 * ms}, {Do: doHold}, {Do: doAwait, Source: self, Limit: 5 * time.Second}} {
		if r := f.do(what); r.Failure != "" {
			t.Fatalf("%s: %s", what.Do, r.Failure)
		}
	}
	r := f.do(order{Do: doMeasure, Cut: now(), Old: activePair[0], Limit: time.Second})
	if m := r.Measured; m.Source != self || m.First <= 0 || m.First > time.Second || m.UDPSource != self || m.UDP <= 0 || m.Reset != 0 || m.Stale != 0 {
		t.Errorf("another path: %+v", m)
	}
	if r.Seen[self] == 0 || len(r.Seen) != 1 || r.Connections.Answered == 0 || r.Connections.Failed != 0 || r.Connections.Longest <= 0 {
		t.Errorf("seen %v, %+v", r.Seen, r.Connections)
	}
	if r := f.do(order{Do: doLoad, Streams: 1, Limit: 100 * ms}); r.Failure != "" || r.Sent == 0 || r.Received == 0 {
		t.Errorf("load: %+v", r)
	}
	// The origin goes: what is open is reset or ended, and nobody answers.
	cut := now()
	if err := o.close(); err != nil {
		t.Error(err)
	}
	r = f.do(order{Do: doMeasure, Cut: cut, Old: self, Limit: 200 * ms})
	if m := r.Measured; m.First != 0 || m.UDP != 0 || m.Reset <= 0 || m.How == "" {
		t.Errorf("the old path only: %+v", m)
	}
	if r := f.do(order{Do: doAwait, Source: activePair[1], Limit: 50 * ms}); !strings.Contains(r.Failure, "no new connection was answered from 203.0.113.11 within 50ms") {
		t.Errorf("await a source that nobody has: %+v", r)
	}
	if r := f.do(order{Do: "dance"}); !strings.Contains(r.Failure, "dance") {
		t.Errorf("an unknown order: %+v", r)
	}
	f.end()
	j := newJudge(w)
	seen := j.look()
	// All of it is wrong, as none went by a tunnel; a second look finds nothing more.
	if seen.Packets == 0 || seen.Wrong != seen.Packets || seen.Incomplete != "" || len(seen.Examples) != maxExamples {
		t.Errorf("the judge saw %+v", seen)
	}
	if again := j.look(); again.Wrong != seen.Wrong {
		t.Errorf("looked again: %+v", again)
	}
}

func TestHelperFunction(t *testing.T) {
	if os.Getenv("FAILOVER_HELPER") != "function" {
		t.Skip("a helper of TestFunctionAndJudge")
	}
	out := os.Stdout
	os.Stdout = os.Stderr // what the test itself prints is no reply
	if err := Function(t.Context(), os.Stdin, out); err != nil {
		t.Error(err)
	}
}

// A gateway host may send from what it holds, and tunnels' datagrams from its own
// address, and nothing else.
func TestJudgeOfGateways(t *testing.T) {
	w := testWorld(t)
	j, a := newJudge(w), w.hosts[0]
	send := func(from, to netip.AddrPort) {
		t.Helper()
		c, err := a.machine.DialFrom(t.Context(), net.UDPAddrFromAddrPort(from), "udp4", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		// The first one waits for a neighbour's address.
		if _, err := a.watch.Wait(t.Context(), func(p netlab.Packet) bool { return !p.Out && p.Src == from && p.Dst == to }); err != nil {
			t.Fatal(err)
		}
	}
	to := netip.AddrPortFrom(originLink.Addr(), 9)
	send(netip.AddrPortFrom(a.holds[0], 5000), to)
	send(netip.AddrPortFrom(a.link.Addr(), firstPort), netip.AddrPortFrom(workerLink.Addr(), 40000))
	// Nobody takes the datagram, which the worker's kernel says.
	if _, err := w.watchWorker.Wait(t.Context(), func(p netlab.Packet) bool { return !p.Out && p.Proto == protocolICMP }); err != nil {
		t.Fatal(err)
	}
	if got := j.look(); got.Packets != 3 || got.Wrong != 0 || got.Incomplete != "" {
		t.Errorf("proper packets: %+v", got)
	}
	send(netip.AddrPortFrom(a.link.Addr(), 5000), to)
	if got := j.look(); got.Packets != 4 || got.Wrong != 1 || len(got.Examples) != 1 {
		t.Errorf("its own address past the tunnel: %+v", got)
	}
	a.machine.Address("lo", netip.PrefixFrom(w.hosts[1].holds[0], 32))
	if err := w.lab.Err(); err != nil {
		t.Fatal(err)
	}
	send(netip.AddrPortFrom(w.hosts[1].holds[0], 5000), to)
	if got := j.look(); got.Packets != 5 || got.Wrong != 2 {
		t.Errorf("the sibling's address: %+v", got)
	}
}
