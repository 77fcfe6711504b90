package wire

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var someKey = [KeySize]byte{1, 2, 3}

func drawHead(t *rapid.T, kinds []Kind) Head {
	return Head{
		Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Flags: rapid.Uint8().Draw(t, "flags"), Flow: rapid.Uint16().Draw(t, "flow"),
		Run: rapid.Uint64().Draw(t, "run"), Sequence: rapid.Uint64().Draw(t, "sequence"), Time: rapid.Uint64().Draw(t, "time"),
	}
}

var allKinds = []Kind{
	KindData, KindEcho, KindEchoAnswer, KindJoin, KindJoinAnswer, KindGenerate, KindGenerateAnswer, KindGenerated,
	KindReport, KindReportAnswer, KindRefusal, KindSink, KindSinkAnswer, KindSource, KindAsk, KindAskAnswer,
}

var sealedKinds = []Kind{KindJoin, KindJoinAnswer, KindGenerate, KindGenerateAnswer, KindReport, KindReportAnswer, KindRefusal, KindSource}

// The format is what far sides of other builds speak, too.
func TestHeadOnTheWire(t *testing.T) {
	b := make([]byte, HeadSize)
	h := Head{Kind: KindEcho, Flags: 3, Flow: 0x0405, Run: 0x060708090a0b0c0d, Sequence: 0x0e0f, Time: 0x1011}
	h.Put(b)
	const want = "71e2098502030405060708090a0b0c0d0000000000000e0f0000000000001011"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("%+v is\n%s, want\n%s", h, got, want)
	}
}

func TestHeadRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHead(t, allKinds)
		b := append(make([]byte, HeadSize), rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "rest")...)
		h.Put(b)
		if got, ok := Decode(b); !ok || got != h {
			t.Fatalf("%+v came back as %+v, %t", h, got, ok)
		}
	})
}

// Each change of up to 32 bits in a row, and each cut, is noticed.
func TestDamagedHeadIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := make([]byte, HeadSize)
		drawHead(t, allKinds).Put(b)
		if n := rapid.IntRange(0, HeadSize-1).Draw(t, "cut"); n < HeadSize {
			if _, ok := Decode(b[:n]); ok {
				t.Fatalf("%d bytes were taken for a head", n)
			}
		}
		at, flips := rapid.IntRange(0, HeadSize-4).Draw(t, "at"), rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "flips")
		if bytes.Equal(flips, make([]byte, 4)) {
			flips[0] = 1
		}
		for i, f := range flips {
			b[at+i] ^= f
		}
		if h, ok := Decode(b); ok {
			t.Fatalf("damaged at %d by %x it was read as %+v", at, flips, h)
		}
	})
}

func drawControl(t *rapid.T, now time.Time) Control {
	return Control{
		Head: drawHead(t, sealedKinds),
		Order: Order{
			Rate: rapid.Uint64().Draw(t, "rate"), For: time.Duration(rapid.Uint32().Draw(t, "for")) * time.Millisecond,
			Size: rapid.Uint16().Draw(t, "size"), Reason: Reason(rapid.Uint16().Draw(t, "reason")),
			Flows: rapid.Uint32().Draw(t, "flows"), Bytes: rapid.Uint64().Draw(t, "bytes"),
		},
		Until: now.Add(time.Duration(rapid.Int64Range(1, int64(ahead/time.Millisecond)).Draw(t, "until")) * time.Millisecond),
	}
}

func TestControlRoundTrip(t *testing.T) {
	s, now := NewSealer(someKey), time.UnixMilli(1_800_000_000_000)
	rapid.Check(t, func(t *rapid.T) {
		c := drawControl(t, now)
		b := s.Append(nil, c)
		if want := c.Head.Kind.size(); len(b) != want {
			t.Fatalf("%+v takes %d bytes, want %d", c, len(b), want)
		}
		if got, v := s.Open(b, now); v != Good || !reflect.DeepEqual(got, c) {
			t.Fatalf("%+v came back as %+v, %v", c, got, v)
		}
	})
}

// No bit of a sealed message may be changed, nothing be cut or added.
func TestMutilatedControlIsRefused(t *testing.T) {
	s, now := NewSealer(someKey), time.UnixMilli(1_800_000_000_000)
	rapid.Check(t, func(t *rapid.T) {
		b := s.Append(nil, drawControl(t, now))
		bit := rapid.IntRange(0, 8*len(b)-1).Draw(t, "bit")
		b[bit/8] ^= 1 << (bit % 8)
		if bit/8 < HeadSize && rapid.Bool().Draw(t, "whole head") {
			// Whoever changes a head can make its checksum right.
			h := Head{Kind(b[4]), b[5], uint16(b[6])<<8 | uint16(b[7]), 0, 0, 0}
			h.Put(b)
		}
		if c, v := s.Open(b, now); v == Good || v == Expired {
			t.Fatalf("with bit %d changed it was read as %+v, %v", bit, c, v)
		}
		b = s.Append(nil, drawControl(t, now))
		if n := rapid.IntRange(0, len(b)-1).Draw(t, "cut"); n < len(b) {
			if _, v := s.Open(b[:n], now); v != Foreign {
				t.Fatalf("%d of %d bytes are %v", n, len(b), v)
			}
		}
		if _, v := s.Open(append(b, 0), now); v != Foreign {
			t.Fatalf("with a byte more it is %v", v)
		}
	})
}

func TestOpen(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	for name, c := range map[string]struct {
		kind  Kind
		until time.Duration
		key   [KeySize]byte
		want  Verdict
	}{
		"valid":                       {KindJoin, Validity, someKey, Good},
		"at the last":                 {KindJoin, time.Millisecond, someKey, Good},
		"over":                        {KindJoin, 0, someKey, Expired},
		"long over":                   {KindReport, -1000 * time.Hour, someKey, Expired},
		"as far ahead as may be":      {KindSource, ahead, someKey, Good},
		"further ahead":               {KindSource, ahead + time.Millisecond, someKey, Expired},
		"an answer does not expire":   {KindJoinAnswer, -time.Hour, someKey, Good},
		"a refusal does not expire":   {KindRefusal, -time.Hour, someKey, Good},
		"another key":                 {KindJoin, Validity, [KeySize]byte{1, 2, 4}, Unsealed},
		"another key, long over":      {KindJoin, -time.Hour, [KeySize]byte{}, Unsealed},
		"of a kind that has no seal":  {KindData, Validity, someKey, Foreign},
		"before there were any times": {KindGenerate, -1_800_000_001 * time.Second, someKey, Expired},
	} {
		b := NewSealer(c.key).Append(nil, Control{Head: Head{Kind: c.kind}, Until: now.Add(c.until)})
		if _, got := NewSealer(someKey).Open(b, now); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestReportRoundTrip(t *testing.T) {
	s, now := NewSealer(someKey), time.UnixMilli(1_800_000_000_000)
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range MaxSources + 3 {
		var r Report
		for _, c := range r.counters() {
			*c = rng.Uint64()
		}
		r.Others = 7
		for i := range n {
			a := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
			if i%2 == 1 {
				a = netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)})
			}
			r.Sources = append(r.Sources, Source{a, 1 + uint64(i)})
		}
		request := Control{Head: Head{Kind: KindReport, Run: 4, Sequence: 5}, Until: now.Add(Validity)}
		asked := s.Append(nil, request)
		b := s.AppendReport(nil, request, &r)
		if len(asked) != len(b) || len(b) != ReportSize {
			t.Fatalf("a report takes %d bytes, and %d to ask for; want %d", len(b), len(asked), ReportSize)
		}
		want := r
		if n > MaxSources {
			want.Sources = r.Sources[:MaxSources]
			for _, s := range r.Sources[MaxSources:] {
				want.Others += s.Count
			}
		}
		c, got, v := s.OpenReport(b, now)
		if v != Good || c.Head.Run != 4 || c.Head.Sequence != 5 || !reflect.DeepEqual(got, want) {
			t.Errorf("%d sources: %+v came back as %+v, %v", n, want, got, v)
		}
		if _, _, v := s.OpenReport(asked, now); v != Foreign {
			t.Errorf("the request was taken for its answer: %v", v)
		}
	}
}

// Every counter has a place of its own.
func TestReportHasAllCounters(t *testing.T) {
	var r Report
	seen := map[*uint64]bool{&r.Others: true}
	for _, c := range r.counters() {
		seen[c] = true
	}
	v := reflect.ValueOf(&r).Elem()
	fields := 0
	for i := range v.NumField() {
		if p, ok := v.Field(i).Addr().Interface().(*uint64); ok {
			if fields++; !seen[p] {
				t.Errorf("%s is not on the wire", v.Type().Field(i).Name)
			}
		}
	}
	if fields != len(seen) {
		t.Errorf("%d counters on the wire, want %d", len(seen), fields)
	}
}

func TestNoAllocations(t *testing.T) {
	b, h := make([]byte, HeadSize), Head{Kind: KindData, Flow: 3}
	if n := testing.AllocsPerRun(100, func() {
		h.Put(b)
		h, _ = Decode(b)
		h.Sequence++
	}); n != 0 {
		t.Errorf("a head takes %v allocations", n)
	}
	s, now := NewSealer(someKey), time.UnixMilli(1_800_000_000_000)
	c, m := Control{Head: Head{Kind: KindJoin}, Until: now.Add(Validity)}, make([]byte, 0, ReportSize)
	if n := testing.AllocsPerRun(100, func() {
		m = s.Append(m[:0], c)
		c, _ = s.Open(m, now)
	}); n != 0 {
		t.Errorf("a sealed message takes %v allocations", n)
	}
}

// Whatever comes is refused or means the same when it is written again.
func FuzzDecode(f *testing.F) {
	s, now := NewSealer(someKey), time.UnixMilli(1_800_000_000_000)
	b := make([]byte, HeadSize)
	Head{Kind: KindData, Run: 1}.Put(b)
	f.Add(b)
	for _, k := range sealedKinds {
		f.Add(s.Append(nil, Control{Head: Head{Kind: k, Run: 2}, Order: Order{Rate: 1000}, Until: now.Add(Validity)}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := Decode(b); ok {
			again := make([]byte, HeadSize)
			if h.Put(again); !bytes.Equal(again, b[:HeadSize]) {
				t.Fatalf("%x was read as %+v", b, h)
			}
		}
		c, r, v := s.OpenReport(b, now)
		switch {
		case v != Good:
		case !bytes.Equal(s.AppendReport(nil, c, &r)[:HeadSize], b[:HeadSize]):
			t.Fatalf("%x was read as %+v, %+v", b, c, r)
		}
	})
}

func BenchmarkHead(b *testing.B) {
	m, h := make([]byte, HeadSize), Head{Kind: KindData}
	b.ReportAllocs()
	for b.Loop() {
		h.Put(m)
		h, _ = Decode(m)
		h.Sequence++
	}
}

func BenchmarkSeal(b *testing.B) {
	s, now := NewSealer(someKey), time.UnixMilli(1_800_000_000_000)
	c, m := Control{Head: Head{Kind: KindJoin}, Until: now.Add(Validity)}, make([]byte, 0, ReportSize)
	b.ReportAllocs()
	for b.Loop() {
		m = s.Append(m[:0], c)
		c, _ = s.Open(m, now)
	}
}
