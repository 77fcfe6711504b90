package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(m)) }

var update = flag.Bool("update", false, "write the golden files")

func sources(texts ...string) (out []netip.AddrPort) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestSources(t *testing.T) {
	fifty := func(address string, ports int) (out []netip.AddrPort) {
		for i := range many {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(address), uint16(1024+i%ports)))
		}
		return out
	}
	for _, c := range []struct {
		name string
		got  outcome
		want outcome
	}{
		{"from the pair", allFrom(sources("203.0.113.11:1"), acmePair), outcome{"203.0.113.11", true}},
		{"from nowhere", allFrom(nil, acmePair), outcome{"nothing", false}},
		{"from another pair", allFrom(sources("203.0.113.11:1", "203.0.113.12:1"), acmePair), outcome{"203.0.113.11 and 203.0.113.12", false}},
		{"from the worker", allFrom(sources("198.51.100.2:1"), acmePair), outcome{"198.51.100.2", false}},
		{"from both", allFromBoth(sources("203.0.113.11:1", "203.0.113.10:1"), acmePair), outcome{"203.0.113.10 and 203.0.113.11, of 2 functions", true}},
		{"from one only", allFromBoth(sources("203.0.113.11:1", "203.0.113.11:2"), acmePair), outcome{"203.0.113.11, of 2 functions", false}},
		{"many from one", allFromOne(fifty("203.0.113.10", many), acmePair), outcome{"203.0.113.10, 50 ports", true}},
		{"many that share ports", allFromOne(fifty("203.0.113.10", many-1), acmePair), outcome{"203.0.113.10, 49 ports", false}},
		{"too few", allFromOne(fifty("203.0.113.10", many)[1:], acmePair), outcome{"203.0.113.10, 49 ports", false}},
		{"many from two", allFromOne(append(fifty("203.0.113.10", many)[1:], sources("203.0.113.11:9")...), acmePair), outcome{"203.0.113.10 and 203.0.113.11, 50 ports", false}},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestTwins(t *testing.T) {
	for _, c := range []struct {
		inner, outer []netip.AddrPort
		held         bool
	}{
		{sources("10.20.0.2:0", "10.20.0.2:0"), sources("203.0.113.10:1", "203.0.113.13:1"), true},
		{sources("10.20.0.2:0", "10.20.0.3:0"), sources("203.0.113.10:1", "203.0.113.13:1"), false},
		{sources("10.20.0.2:0", "10.20.0.2:0"), sources("203.0.113.13:1", "203.0.113.10:1"), false},
		{sources("10.20.0.2:0", "10.20.0.2:0"), sources("203.0.113.10:1", "203.0.113.11:1"), false},
	} {
		if got := twins([2]netip.AddrPort(c.inner), [2]netip.AddrPort(c.outer)); got.held != c.held {
			t.Errorf("%v as %v: got %v, want %v", c.inner, c.outer, got, c.held)
		}
	}
}

func TestRefusal(t *testing.T) {
	const failure = `Get "http://192.0.2.66:80/": dial tcp 192.0.2.66:80: connect: no route to host`
	for _, c := range []struct {
		a    answer
		sent int
		want outcome
	}{
		{answer{Failure: failure, Took: 700 * time.Microsecond}, 0, outcome{"no route to host after 0.7 ms, 0 packets sent", true}},
		{answer{Failure: failure, Took: refusalPatience}, 0, outcome{"no route to host after 1000.0 ms, 0 packets sent", false}},
		{answer{Failure: failure}, 1, outcome{"no route to host after 0.0 ms, 1 packets sent", false}},
		{answer{Addresses: sources("203.0.113.10:1")}, 0, outcome{"an answer after 0.0 ms, 0 packets sent", false}},
	} {
		if got := refusal(c.a, c.sent); got != c.want {
			t.Errorf("got %v, want %v", got, c.want)
		}
	}
}

// sent is a packet of IPv4 that came in.
func sent(proto uint8, from, to string) netlab.Packet {
	return netlab.Packet{EtherType: 0x0800, Proto: proto, Src: netip.MustParseAddrPort(from), Dst: netip.MustParseAddrPort(to), Length: 40}
}

func TestLinks(t *testing.T) {
	bypassed := sources("198.51.100.2:4000")
	gateway := []netlab.Packet{
		{EtherType: etherARP},
		sent(protocolUDP, "198.51.100.18:51820", "198.51.100.2:5000"),
		sent(protocolTCP, "203.0.113.13:4000", "192.0.2.80:80"),
	}
	worker := []netlab.Packet{
		sent(protocolUDP, "198.51.100.2:5000", "198.51.100.18:51820"),
		sent(protocolTCP, "198.51.100.2:4000", "192.0.2.80:80"),
	}
	out := sent(protocolUDP, "192.0.2.80:7", "203.0.113.10:9")
	out.Out = true
	leak := sent(protocolUDP, "192.0.2.80:7", "10.20.0.2:9")
	leak.Out = true
	for _, c := range []struct {
		name    string
		packets []netlab.Packet
		more    []netlab.Packet
		lost    uint64
		held    bool
	}{
		{"gateway", gateway, nil, 0, true},
		{"gateway, answered", gateway, []netlab.Packet{out}, 0, true},
		{"gateway, incomplete", gateway, nil, 1, false},
		{"gateway, no tunnel", gateway[2:], nil, 0, false},
		{"gateway, nothing from the pairs", gateway[:2], nil, 0, false},
		{"gateway's own address", gateway, []netlab.Packet{sent(protocolTCP, "198.51.100.18:4000", "192.0.2.80:80")}, 0, false},
		{"gateway, UDP that is no tunnel", gateway, []netlab.Packet{sent(protocolUDP, "198.51.100.18:4000", "192.0.2.53:53")}, 0, false},
		{"gateway, another of the pool", gateway, []netlab.Packet{sent(protocolTCP, "203.0.113.14:4000", "192.0.2.80:80")}, 0, false},
		{"gateway, inner source", gateway, []netlab.Packet{sent(protocolTCP, "10.20.0.2:4000", "192.0.2.80:80")}, 0, false},
		{"gateway, inner destination", gateway, []netlab.Packet{leak}, 0, false},
		{"gateway, IPv6", gateway, []netlab.Packet{{EtherType: 0x86dd, Src: netip.MustParseAddrPort("[2001:db8::1]:0")}}, 0, false},
		{"worker", worker, nil, 0, true},
		{"worker, who did not bypass", worker, []netlab.Packet{sent(protocolTCP, "198.51.100.2:4001", "192.0.2.80:80")}, 0, false},
		{"worker, DNS", worker, []netlab.Packet{sent(protocolUDP, "198.51.100.2:4000", "192.0.2.53:53")}, 0, false},
		{"worker, inner source", worker, []netlab.Packet{sent(protocolUDP, "10.20.0.2:5000", "198.51.100.18:51820")}, 0, false},
	} {
		why, reasons := ofGateway, []string{byTunnel, byPair}
		if strings.HasPrefix(c.name, "worker") {
			why, reasons = ofWorker(bypassed), []string{byTunnel, byBypass}
		}
		all := append(append([]netlab.Packet{}, c.packets...), c.more...)
		if got := onlyAllowed(all, c.lost, why, reasons...); got.held != c.held {
			t.Errorf("%s: got %v, want %v", c.name, got, c.held)
		}
	}
}

func TestWrongSources(t *testing.T) {
	const series = `sallyport_drops_total{direction="egress",network="a",reason="wrong_source"} `
	for _, c := range []struct {
		text string
		want outcome
		bad  bool
	}{
		{"# HELP x\n" + series + "0\n" + series + "0\n", outcome{"0", true}, false},
		{series + "0\n" + series + "3\n", outcome{"3", false}, false},
		{"sallyport_drops_total{reason=\"policy\"} 3\n", outcome{}, true},
		{series + "many\n", outcome{}, true},
	} {
		got, err := wrongSources(c.text)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%q: got %v and %v, want %v", c.text, got, err, c.want)
		}
	}
}

// TestReport holds what is printed against files; -update writes them.
func TestReport(t *testing.T) {
	checks := []check{{name: "a function", expected: "203.0.113.10"}, {name: "ICMP", expected: "an answer"}, {name: "ünusual", expected: "-"}}
	r := &report{Took: 1500 * time.Millisecond, Failure: "sallyportd ended", Logs: map[string]string{"b": "two\n", "a": "one\n"}, Results: []result{
		{"a function", "203.0.113.10", "203.0.113.10", held},
		{"ICMP", "an answer", "no ping sockets", impossible},
		{"ünusual", "-", "198.51.100.2", failed},
	}}
	for name, terminal := range map[string]bool{"plain": false, "terminal": true} {
		var b bytes.Buffer
		p := newPrinter(&b, terminal, checks)
		p.header()
		for i, x := range r.Results {
			p.waiting(checks[i].name)
			p.result(x)
		}
		p.end(r)
		golden(t, name, b.Bytes())
	}
	var b bytes.Buffer
	if err := writeJSON(&b, r); err != nil {
		t.Fatal(err)
	}
	golden(t, "json", b.Bytes())
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestNothingPossible(t *testing.T) {
	var b bytes.Buffer
	r := nothingPossible(newPrinter(&b, false, expectations()), errors.New("one\ntwo"))
	if n := r.count(impossible); n != len(expectations()) || r.count(failed) != 0 {
		t.Errorf("%d of %d expectations are not possible", n, len(expectations()))
	}
	if n := strings.Count(b.String(), "not possible here: one; two\n"); n != len(expectations()) {
		t.Errorf("%d lines say why in:\n%s", n, b.String())
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		o    outcome
		err  error
		want status
	}{
		{outcome{"x", true}, nil, held},
		{outcome{"x", false}, nil, failed},
		{outcome{"", true}, errors.New("x"), failed},
		{outcome{}, errors.Join(&impossibleError{errors.New("x")}), impossible},
	} {
		look := func(context.Context, *stage) (outcome, error) { return c.o, c.err }
		if got := (check{name: "n", expected: "e", look: look}).judge(t.Context(), nil); got != (result{"n", "e", "x", c.want}) {
			t.Errorf("%v and %v: got %v, want %v", c.o, c.err, got, c.want)
		}
	}
}

func TestFunction(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(tellSource))
	defer server.Close()
	var in, out bytes.Buffer
	tasks := []task{
		{Do: doHTTP, Target: server.Listener.Addr().String(), Count: 3},
		{Do: doHTTP, Target: "127.0.0.1:1"},
		{Do: "dance"},
	}
	for _, x := range tasks {
		if err := json.NewEncoder(&in).Encode(x); err != nil {
			t.Fatal(err)
		}
	}
	if err := Function(t.Context(), &in, &out); err != nil {
		t.Fatal(err)
	}
	var answers []answer
	for d := json.NewDecoder(&out); d.More(); {
		var a answer
		if err := d.Decode(&a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	if len(answers) != len(tasks) {
		t.Fatalf("%d answers to %d tasks: %v", len(answers), len(tasks), answers)
	}
	if a := answers[0]; a.Failure != "" || len(a.Addresses) != 3 || len(distinct(a.Addresses)) != 1 {
		t.Errorf("three requests: %+v", a)
	}
	if answers[1].Failure == "" || answers[2].Failure == "" {
		t.Errorf("no failure in %+v", answers[1:])
	}
	if err := Function(t.Context(), strings.NewReader("nonsense"), &out); err == nil {
		t.Error("nonsense is taken for a task")
	}
}

// TestWorld builds the machines and asks the internet from the worker's own address.
func TestWorld(t *testing.T) {
	netlab.Require(t)
	ignored := goleak.IgnoreCurrent()
	defer goleak.VerifyNone(t, ignored)
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}()
	o, err := startOrigin(w)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := o.close(); err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{DialContext: w.worker.Dial, DisableKeepAlives: true}}
	for _, a := range []netip.Addr{origin, refused} {
		b, err := get(t.Context(), client, "http://"+at(a, portHTTP)+"/")
		if err != nil {
			t.Fatal(err)
		}
		if from, err := netip.ParseAddrPort(string(b)); err != nil || from.Addr() != workerLink.Addr() {
			t.Errorf("%v saw %q (%v), want a port of %v", a, b, err, workerLink.Addr())
		}
	}
	if o, err := judgeCapture(w.fromWorker, ofWorker(nil)); err != nil || o.held {
		t.Errorf("a worker that goes out by itself is not noticed: %v, %v", o, err)
	}
}
