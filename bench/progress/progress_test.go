package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// A line is rewritten on a terminal, steps have a line elsewhere, and nobody need listen.
func TestProgress(t *testing.T) {
	start := time.Unix(0, 0)
	tell := func(p *Line) {
		p.Begin("[1/3] udp-out  peak", start, 10*time.Second)
		p.Rate(start.Add(5*time.Second), 149203, 0.0002)
		p.Rate(start.Add(5*time.Second+repaint/2), 1, 0) // too soon
		p.Print("peak  %s", "a\nb")
		p.End()
	}
	var b bytes.Buffer
	tell(New(&b, true, 60))
	if got, want := b.String(), "\r\x1b[K[1/3] udp-out  peak    0 %\r\x1b[K[1/3] udp-out  peak   50 %  149,203/s  0.02 % lost\r\x1b[Kpeak  a; b\n\r\x1b[K"; got != want {
		t.Errorf("on a terminal %q, want %q", got, want)
	}
	b.Reset()
	tell(New(&b, true, 20))
	for _, part := range strings.Split(b.String(), clearLine) {
		if n := len([]rune(part)); n > 19 && !strings.HasSuffix(part, "\n") {
			t.Errorf("%d characters on 20 columns: %q", n, part)
		}
	}
	b.Reset()
	tell(New(&b, false, 0))
	if got := b.String(); got != "peak  a; b\n" {
		t.Errorf("elsewhere %q", got)
	}
	tell(New(nil, true, 0))
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := Group(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

// What takes an unknown time says for how long it has, and what is cut fits the terminal.
func TestUnknown(t *testing.T) {
	start := time.Unix(0, 0)
	var b bytes.Buffer
	l := New(&b, true, 20)
	l.Begin("tcp-out", start, 0)
	l.Elapsed(start.Add(12 * time.Second))
	if got, want := b.String(), "\r\x1b[Ktcp-out\r\x1b[Ktcp-out  12 s"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	b.Reset()
	l.Brief(strings.Repeat("x", 30))
	if got, want := b.String(), "\r\x1b[K"+strings.Repeat("x", 18)+"…\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Work is shown until it is done, and not at all elsewhere than on a terminal.
func TestWork(t *testing.T) {
	var b bytes.Buffer
	New(&b, false, 0).Work("tcp-out", 0)()
	if b.Len() != 0 {
		t.Errorf("elsewhere %q", b.String())
	}
	New(&b, true, 0).Work("tcp-out", time.Hour)()
	if !strings.HasPrefix(b.String(), clearLine+"tcp-out    0 %") {
		t.Errorf("on a terminal %q", b.String())
	}
}
