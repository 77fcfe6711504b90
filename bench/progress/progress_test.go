package progress

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// later lets time pass and what was begun in it end.
func later(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// shows fails unless a screen shows these lines.
func shows(t *testing.T, s *screen, when string, want ...string) {
	t.Helper()
	if got := s.lines(); !slices.Equal(got, want) {
		t.Errorf("%s:\n  %q, want\n  %q", when, got, want)
	}
}

// A terminal has a bar for what goes on, below the lines that stay, until that has ended. In the end
// nothing else is left, and nothing comes any more.
func TestKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t, 90)
		l := New(s, true, 90)
		l.Print("CPU of the %s", "gateway")
		stop := l.Work("[1/3] udp-out  peak", 10*time.Second)
		later(repaint + repaint/2) // not at the very moment of a painting
		shows(t, s, "at its begin", "CPU of the gateway",
			"  1 %  [1/3] udp-out  peak [----------------------------]")
		later(5*time.Second - repaint)
		l.Rate(149203, 0.0002)
		l.Print("again: %s", "a\nb")
		later(repaint)
		shows(t, s, "in its midst", "CPU of the gateway", "again: a; b",
			" 51 %  [1/3] udp-out  peak [=============>--------------]  149,203/s  0.02 % lost")
		later(time.Minute)
		const before, behind = " 65 s  [1/3] udp-out  peak ", "  149,203/s  0.02 % lost"
		if last := s.lines()[2]; !strings.HasPrefix(last, before) || !strings.HasSuffix(last, behind) || len(last) != len(before+"-"+behind) {
			t.Errorf("when it takes longer: %q", last)
		}
		stop()
		l.Rate(1, 1)
		later(repaint)
		shows(t, s, "when it has ended", "CPU of the gateway", "again: a; b")
		stop = l.Work("udp-in", time.Second)
		l.Brief("peak  149,203/s\n" + strings.Repeat("x", 100))
		l.End()
		shows(t, s, "at the end", "CPU of the gateway", "again: a; b", "peak  149,203/s; "+strings.Repeat("x", 71)+"…")
		if !s.home() {
			t.Error("at the end what comes next does not begin on a line of its own")
		}
		end := s.written()
		stop()
		l.Work("too late", 0)()
		l.Rate(1, 1)
		l.Print("too late")
		l.End()
		later(time.Second)
		if n := s.written() - end; n != 0 || s.wraps != 0 {
			t.Errorf("%d bytes after the end, %d lines broken", n, s.wraps)
		}
	})
}

// What takes an unknown time says for how long it has, and moves. What begins takes the place of
// what went on.
func TestUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t, 60)
		l := New(s, true, 60)
		first := l.Work("starting", 0)
		stop := l.Work("tcp-out", 0)
		first() // has ended already
		later(12*time.Second + repaint/2)
		signs := map[string]bool{}
		for range 4 {
			lines := s.lines()
			what, sign, _ := strings.Cut(strings.Join(lines, "\n"), "tcp-out ")
			if what != " 12 s  " {
				t.Errorf("%q after 12 s", lines)
			}
			signs[sign] = true
			later(repaint)
		}
		if len(signs) != 4 {
			t.Errorf("it seems to stand still: %v", signs)
		}
		l.Rate(98, -1)
		later(repaint)
		if lines := s.lines(); len(lines) != 1 || !strings.HasSuffix(lines[0], "  98/s") {
			t.Errorf("%q at 98/s", lines)
		}
		stop()
		l.End()
		shows(t, s, "at the end")
	})
}

// However narrow a terminal is, one line of it is painted, and says how far it is.
func TestNarrow(t *testing.T) {
	const all = "attached [=============>--------------]  1,234,567/s  12.34 % lost"
	for takes, lead := range map[time.Duration]string{0: "  1 s", 2 * time.Second: " 50 %"} {
		for width := 1; width < 130; width++ {
			synctest.Test(t, func(t *testing.T) {
				s := newScreen(t, width)
				l := New(s, true, width)
				l.Work("[12/13] sandboxes  1,000 of 10,000 attached", takes)
				l.Rate(1234567, 0.1234)
				later(time.Second + repaint/2)
				lines := s.lines()
				if len(lines) != 1 || width > len(lead) && !strings.HasPrefix(lines[0], lead) || width > 121 && takes > 0 && !strings.HasSuffix(lines[0], all) {
					t.Errorf("%q on %d columns", lines, width)
				}
				l.Brief(strings.Repeat("x", width))
				l.End()
				if lines := s.lines(); len(lines) != 1 || s.wraps != 0 {
					t.Errorf("%q at the end on %d columns, where %d lines were broken", lines, width, s.wraps)
				}
			})
		}
	}
}

// What a terminal echoes, like ^C, tears no line and is not left.
func TestTyped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t, 60)
		l := New(s, true, 60)
		l.Work("tcp-out", time.Minute)
		for range 5 {
			later(3 * time.Second)
			fmt.Fprint(s, "^C")
		}
		later(repaint + repaint/2)
		shows(t, s, "after a key", " 25 %  tcp-out [======>---------------------]")
		fmt.Fprint(s, "^C")
		l.Print("interrupted")
		fmt.Fprint(s, "^C")
		l.End()
		shows(t, s, "at the end", "interrupted")
		if !s.home() || s.wraps != 0 {
			t.Errorf("%d lines were broken", s.wraps)
		}
	})
}

// What many say at once is there once and whole, in the order in which each said it.
func TestMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const speakers, each = 4, 50
		s := newScreen(t, 80)
		l := New(s, true, 80)
		var all sync.WaitGroup
		for i := range speakers {
			all.Go(func() {
				for j := range each {
					stop := l.Work(fmt.Sprintf("work %d of %d", j, i), time.Duration(j%2)*time.Second)
					l.Rate(float64(j), 0)
					l.Print("line %d of %d", j, i)
					if j%5 == 0 {
						<-time.After(repaint / 3)
					}
					stop()
				}
			})
		}
		all.Wait()
		l.End()
		lines := s.lines()
		if len(lines) != speakers*each || s.wraps != 0 {
			t.Fatalf("%d lines of %d, %d broken", len(lines), speakers*each, s.wraps)
		}
		var next [speakers]int
		for _, line := range lines {
			var j, i int
			if n, err := fmt.Sscanf(line, "line %d of %d", &j, &i); n != 2 || err != nil || line != fmt.Sprintf("line %d of %d", j, i) || next[i] != j {
				t.Fatalf("line %q, where %v were next", line, next)
			}
			next[i]++
		}
	})
}

// broken takes so many writes, and fails.
type broken struct{ left int }

func (b *broken) Write(p []byte) (int, error) {
	if b.left--; b.left < 0 {
		return 0, errors.New("gone")
	}
	return len(p), nil
}

// A terminal that is gone holds nobody up.
func TestGone(t *testing.T) {
	for left := range 8 {
		synctest.Test(t, func(t *testing.T) {
			l := New(&broken{left}, true, 80)
			for range 3 {
				stop := l.Work("tcp-out", time.Second)
				later(2 * repaint)
				l.Rate(1, 0)
				l.Print("said to nobody")
				stop()
			}
			l.Work("tcp-in", 0)
			l.End()
		})
	}
}

// Elsewhere than on a terminal there are lines for what is done, and nobody need listen.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tell := func(l *Line) {
			stop := l.Work("[1/3] udp-out  peak", time.Second)
			l.Rate(149203, 0.0002)
			l.Print("peak  %s", "a\nb")
			l.Brief(strings.Repeat("x", 100))
			later(time.Minute)
			stop()
			l.End()
		}
		var b bytes.Buffer
		tell(New(&b, false, 0))
		if got := b.String(); got != "peak  a; b\n"+strings.Repeat("x", 100)+"\n" {
			t.Errorf("%q", got)
		}
		tell(New(nil, true, 0))
	})
}

func TestGroup(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := Group(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}
