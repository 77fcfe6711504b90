package packet

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func TestProbeOnTheWire(t *testing.T) {
	b := bytes.Repeat([]byte{0xee}, 40)
	ask := Probe{Type: ProbeRequest, Nonce: 0x0102030405060708, Sequence: 0x1112131415161718}
	if n := ask.Put(b); n != ProbeSize || b[32] != 0xee {
		t.Fatalf("wrote %d bytes", n)
	}
	const want = "5361503101010000" + "0102030405060708" + "1112131415161718" + "0000000000000000"
	if got := hex.EncodeToString(b[:32]); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	got, ok := ParseProbe(b[:32])
	if !ok || got != ask {
		t.Fatalf("%+v, %v", got, ok)
	}
	reply := got.Reply(HealthDraining | HealthFull)
	reply.Put(b)
	back, ok := ParseProbe(b[:32])
	if !ok || back != (Probe{Type: ProbeReply, Health: 6, Nonce: ask.Nonce, Sequence: ask.Sequence}) {
		t.Errorf("%+v, %v", back, ok)
	}
}

func TestProbeRefuses(t *testing.T) {
	good := make([]byte, 33)
	Probe{Type: ProbeRequest}.Put(good)
	for name, f := range map[string]func(b []byte) []byte{
		"short":   func(b []byte) []byte { return b[:31] },
		"long":    func(b []byte) []byte { return b[:33] },
		"magic":   func(b []byte) []byte { b[0]++; return b[:32] },
		"version": func(b []byte) []byte { b[4] = 2; return b[:32] },
		"type 0":  func(b []byte) []byte { b[5] = 0; return b[:32] },
		"type 3":  func(b []byte) []byte { b[5] = 3; return b[:32] },
		"empty":   func(b []byte) []byte { return nil },
	} {
		if _, ok := ParseProbe(f(bytes.Clone(good))); ok {
			t.Errorf("%s: taken for a probe", name)
		}
	}
	if n := (Probe{}).Put(good[:31]); n != 0 {
		t.Errorf("wrote %d bytes into 31", n)
	}
}
