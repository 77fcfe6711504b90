package sidecar

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const ms = packet.Instant(1e6)

func TestProberMeasures(t *testing.T) {
	p := prober{nonce: 7}
	if p.alive(0) {
		t.Error("alive before the first answer")
	}
	m := p.ask(10 * ms)
	if m.Type != packet.ProbeRequest || m.Nonce != 7 || m.Sequence != 1 {
		t.Errorf("first probe %+v", m)
	}
	if !p.answer(m.Reply(packet.HealthDraining), 12*ms) {
		t.Fatal("the answer is not taken")
	}
	if p.rtt != 2*ms || p.health != packet.HealthDraining || p.answers != 1 {
		t.Errorf("rtt %d, health %d, answers %d; want 2 ms, draining, 1", p.rtt, p.health, p.answers)
	}
	m = p.ask(100 * ms)
	p.answer(m.Reply(0), 110*ms)
	if p.rtt != 3*ms {
		t.Errorf("smoothed RTT %d, want 3 ms", p.rtt)
	}
	if !p.alive(110*ms+probeDead-1) || p.alive(110*ms+probeDead) {
		t.Error("alive is not exactly the time after the last answer")
	}
}

func TestProberRefuses(t *testing.T) {
	p := prober{nonce: 7}
	m := p.ask(0)
	for name, r := range map[string]packet.Probe{
		"a request":       m,
		"another nonce":   {Type: packet.ProbeReply, Nonce: 8, Sequence: m.Sequence},
		"sequence 0":      {Type: packet.ProbeReply, Nonce: 7},
		"the future":      {Type: packet.ProbeReply, Nonce: 7, Sequence: m.Sequence + probeWindow},
		"not yet sent":    {Type: packet.ProbeReply, Nonce: 7, Sequence: 2},
		"wrapped to zero": {Type: packet.ProbeReply, Nonce: 7, Sequence: probeWindow},
	} {
		if p.answer(r, 1) {
			t.Errorf("%s is taken as an answer", name)
		}
	}
	if !p.answer(m.Reply(0), 1) || p.answer(m.Reply(0), 2) {
		t.Error("an answer is not taken exactly once")
	}
}

// Every probe of the window is answered once, in whatever order, and no other.
func TestProberWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := prober{nonce: 1}
		open := map[uint64]bool{}
		for i := range rapid.IntRange(1, 300).Draw(t, "steps") {
			now := packet.Instant(i)
			if rapid.Bool().Draw(t, "ask") {
				m := p.ask(now)
				open[m.Sequence] = true
				if m.Sequence > probeWindow {
					delete(open, m.Sequence-probeWindow)
				}
				continue
			}
			s := rapid.Uint64Range(0, p.next+1).Draw(t, "sequence")
			if got := p.answer(packet.Probe{Type: packet.ProbeReply, Nonce: 1, Sequence: s}, now); got != open[s] {
				t.Fatalf("answer to %d: %v, want %v", s, got, open[s])
			}
			delete(open, s)
		}
	})
}
