package tunnel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// carry sends packets until one arrives, and returns how long that took.
func carry(t *testing.T, from, to end, src, dst string, mark byte) time.Duration {
	t.Helper()
	began, again := time.Now(), time.NewTicker(20*time.Millisecond)
	defer again.Stop()
	late := time.After(20 * time.Second)
	for {
		select {
		case from.dev.out <- packetFrom(src, dst, mark):
		default:
		}
		select {
		case b := <-to.dev.in:
			if b[20] == mark {
				return time.Since(began)
			}
		case <-again.C:
		case <-late:
			t.Fatalf("packet %d did not arrive within 20 s", mark)
		}
	}
}

// Two ends that call each other at the same moment, as a gateway that comes back and a
// worker that missed it do, have a session long before WireGuard itself would try again.
func TestCallsThatCross(t *testing.T) {
	gateway, worker := newEnd(t), newEnd(t)
	connect(t, gateway, worker, "10.0.0.5/32")
	carry(t, worker, gateway, "10.0.0.5", "192.0.2.1", 1)
	const limit = 4 * time.Second
	// A peer drops what follows its last call within 20 ms.
	apart := time.NewTicker(50 * time.Millisecond)
	defer apart.Stop()
	for round := range byte(8) {
		<-apart.C
		<-apart.C // the first may have waited
		var both sync.WaitGroup
		start := make(chan struct{})
		for _, call := range []struct{ from, to end }{{gateway, worker}, {worker, gateway}} {
			both.Go(func() {
				<-start
				if err := call.from.Rehandshake(call.to.PublicKey()); err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		both.Wait()
		out := carry(t, worker, gateway, "10.0.0.5", "192.0.2.1", 10+round)
		back := carry(t, gateway, worker, "192.0.2.1", "10.0.0.5", 100+round)
		if out+back > limit {
			t.Errorf("round %d: %v to the gateway, %v back, want less than %v: WireGuard's own retry did it", round, out, back, limit)
		}
	}
}

// A greeting that is lost is repeated soon, and asking for it again meanwhile makes
// none of them void.
func TestGreetingIsRepeated(t *testing.T) {
	repeats(t, 0, (*Tunnel).Rehandshake)
}

// So is the first call of a peer's keepalive, for those who wait for it.
func TestFirstCallIsRepeated(t *testing.T) {
	repeats(t, time.Minute, (*Tunnel).Await)
}

// Waiting for a peer changes nothing of a session that there is.
func TestAwaitKeepsSession(t *testing.T) {
	gateway, worker := newEnd(t), newEnd(t)
	connect(t, gateway, worker, "10.0.0.5/32")
	carry(t, worker, gateway, "10.0.0.5", "192.0.2.1", 1)
	shook := worker.stateOf(gateway.PublicKey()).LastHandshake
	if err := worker.Await(gateway.PublicKey()); err != nil || shook.IsZero() {
		t.Fatalf("a handshake at %v, %v", shook, err)
	}
	late := time.After(20 * time.Second)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for waits := true; waits; { // until it was looked after
		select {
		case <-again.C:
			worker.mu.Lock()
			_, waits = worker.greetings[gateway.PublicKey()]
			worker.mu.Unlock()
		case <-late:
			t.Fatal("it is waited for still")
		}
	}
	if now := worker.stateOf(gateway.PublicKey()).LastHandshake; !now.Equal(shook) {
		t.Errorf("hands were shaken at %v and again at %v", shook, now)
	}
	if err := worker.Await(NewKey().Public()); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("of a stranger: %v", err)
	}
}

// repeats wants calls repeated to a peer that does not answer.
func repeats(t *testing.T, keepalive time.Duration, begin func(*Tunnel, Key) error) {
	t.Helper()
	deaf, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	worker, peer := newEnd(t), NewKey().Public()
	if err := worker.SetPeer(Peer{PublicKey: peer, Endpoint: deaf.LocalAddr().(*net.UDPAddr).AddrPort(), Keepalive: keepalive}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := begin(worker.Tunnel, peer); err != nil {
		t.Fatal(err)
	}
	if err := deaf.SetReadDeadline(began.Add(4 * time.Second)); err != nil { // WireGuard's own is due after 5
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	for try := range 2 {
		n, err := deaf.Read(b)
		if err != nil {
			t.Fatalf("try %d: %v", try, err)
		}
		if !isInitiation(b[:n]) {
			t.Fatalf("try %d: %x is no initiation", try, b[:n])
		}
		if err := begin(worker.Tunnel, peer); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < greetWait-greetSpacing {
		t.Errorf("repeated within %v", took)
	}
}

// initiation is a message with the given ephemeral key in its first byte.
func initiation(ephemeral byte) []byte {
	b := make([]byte, device.MessageInitiationSize)
	binary.LittleEndian.PutUint32(b, device.MessageInitiationType)
	b[ephemeralAt] = ephemeral
	return b
}

// Of two calls that cross both ends let the same one stand.
func TestOneOfTwoCallsStands(t *testing.T) {
	there, elsewhere := netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("192.0.2.1:51821")
	response := make([]byte, device.MessageResponseSize)
	binary.LittleEndian.PutUint32(response, device.MessageResponseType)
	now := time.Now()
	type message struct {
		in    []byte
		from  netip.AddrPort
		after time.Duration
		want  fate
	}
	for name, messages := range map[string][]message{
		"theirs is less":            {{initiation(4), there, 0, refused}, {initiation(4), there, 0, taken}},
		"theirs is greater":         {{initiation(6), there, 0, taken}, {initiation(4), there, 0, taken}},
		"at the last":               {{initiation(4), there, crossing - 1, refused}},
		"too late":                  {{initiation(4), there, crossing, taken}, {initiation(4), there, 0, taken}},
		"from elsewhere":            {{initiation(4), elsewhere, 0, taken}, {initiation(4), there, 0, refused}},
		"after an answer":           {{response, there, 0, taken}, {initiation(4), there, unravelling - 1, held}, {initiation(4), elsewhere, 0, taken}},
		"long after an answer":      {{response, there, 0, taken}, {initiation(4), there, unravelling, taken}},
		"an answer after theirs":    {{initiation(6), there, 0, taken}, {response, there, 0, held}, {response, elsewhere, 0, taken}},
		"much later":                {{initiation(6), there, 0, taken}, {response, there, unravelling, taken}},
		"an answer after a refusal": {{initiation(4), there, 0, refused}, {response, there, 0, taken}},
	} {
		var open calls
		open.sent(initiation(5), there, now)
		for i, m := range messages {
			if got, _ := open.judge(m.in, m.from, now.Add(m.after)); got != m.want {
				t.Errorf("%s, message %d: fate %d, want %d", name, i, got, m.want)
			}
		}
	}

	// A call that was taken before our own was sent is no other case, and neither is one
	// that has waited.
	var late calls
	if got, _ := late.judge(initiation(4), there, now); got != taken {
		t.Errorf("a call has fate %d, want %d", got, taken)
	}
	late.sent(initiation(5), there, now)
	got, due := late.judge(response, there, now)
	if want := now.Add(unravelling); got != held || !due.Equal(want) {
		t.Errorf("an answer beside the call has fate %d at %v, want %d at %v", got, due, held, want)
	}
	got, after := late.judge(initiation(4), there, now)
	if want := due.Add(unravelling); got != held || !after.Equal(want) {
		t.Errorf("a call behind the answer that waits has fate %d at %v, want %d at %v", got, after, held, want)
	}
	if got := late.answering(there, now); !got.Equal(due.Add(unravelling)) {
		t.Errorf("WireGuard works on the answer until %v, want %v", got, due.Add(unravelling))
	}

	// What is over is forgotten, however many it was.
	var open calls
	for i := range 10 * callsKept {
		at := netip.AddrPortFrom(there.Addr(), uint16(1+i))
		open.sent(initiation(5), at, now.Add(time.Duration(i)*crossing/callsKept))
	}
	if n := len(open.open); n > 3*callsKept {
		t.Errorf("%d calls are kept", n)
	}
}

// An answer that follows a call arrives, but later; what else there is does not wait for
// it.
func TestAnswerWaits(t *testing.T) {
	there, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	var b bind
	receive, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Send([][]byte{initiation(5)}, newEndpoint(there.LocalAddr().(*net.UDPAddr).AddrPort(), source{})); err != nil {
		t.Fatal(err)
	}
	response := make([]byte, device.MessageResponseSize)
	binary.LittleEndian.PutUint32(response, device.MessageResponseType)
	began := time.Now()
	for _, m := range [][]byte{initiation(6), response, []byte("data")} {
		if _, err := there.WriteToUDP(m, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)}); err != nil {
			t.Fatal(err)
		}
	}
	bufs, sizes, eps := make([][]byte, b.BatchSize()), make([]int, b.BatchSize()), make([]conn.Endpoint, b.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, maxDatagram)
	}
	var got []int // the sizes of what came
	for len(got) < 3 {
		n, err := receive[0](bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range sizes[:n] {
			if size > 0 {
				got = append(got, size)
			}
		}
	}
	if want := []int{device.MessageInitiationSize, len("data"), device.MessageResponseSize}; !slices.Equal(got, want) {
		t.Errorf("messages of %v bytes came, want %v", got, want)
	}
	if took := time.Since(began); took < unravelling {
		t.Errorf("the answer came after %v", took)
	}
}
