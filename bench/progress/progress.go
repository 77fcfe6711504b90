// Package progress says what is going on in a measurement: on a terminal by one line that is
// written again and again, else by lines for what is done.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Line is that line, and those that stay above it. Its methods may be called by anyone.
type Line struct {
	out      io.Writer
	terminal bool
	width    int

	mu    sync.Mutex
	what  string // what takes a while
	began time.Time
	takes time.Duration // about; 0: unknown
	shown time.Time     // when the line was written last
}

// The control sequences of ECMA-48 that are used, and the line's usual width and pace.
const (
	clearLine  = "\r\x1b[K"
	usualWidth = 80
	repaint    = 100 * time.Millisecond
)

// New makes one that says nothing if out is nil. width is a terminal's, in columns; 0: the usual.
func New(out io.Writer, terminal bool, width int) *Line {
	if out == nil {
		out = io.Discard
	}
	if width <= 0 {
		width = usualWidth
	}
	return &Line{out: out, terminal: terminal, width: width}
}

// Begin begins something that takes a while.
func (l *Line) Begin(what string, now time.Time, takes time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.what, l.began, l.takes, l.shown = what, now, takes, time.Time{}
	l.paint(now, "")
}

// Rate says how fast it goes, and what part is lost (less than 0: nobody knows).
func (l *Line) Rate(now time.Time, perSecond, loss float64) {
	text := Group(perSecond) + "/s"
	if loss >= 0 {
		text += fmt.Sprintf("  %.2f %% lost", 100*loss)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paint(now, text)
}

// Elapsed says how far it is, where nobody knows how fast it goes.
func (l *Line) Elapsed(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paint(now, "")
}

// Work begins something that takes a while and shows how far it is until stop is called, which
// waits for that to end. takes is about how long; 0: unknown.
func (l *Line) Work(what string, takes time.Duration) (stop func()) {
	l.Begin(what, time.Now(), takes)
	if !l.terminal {
		return func() {}
	}
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(repaint)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				l.Elapsed(now)
			case <-quit:
				return
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
	}
}

// paint writes the line on a terminal. The caller holds l.mu.
func (l *Line) paint(now time.Time, text string) {
	if !l.terminal || now.Sub(l.shown) < repaint {
		return
	}
	l.shown = now
	line := l.what
	if l.takes > 0 {
		done := min(1, max(0, float64(now.Sub(l.began))/float64(l.takes)))
		line += fmt.Sprintf("  %3.0f %%", 100*done)
	} else if d := now.Sub(l.began); d >= time.Second {
		line += fmt.Sprintf("  %.0f s", d.Seconds())
	}
	if text != "" {
		line += "  " + text
	}
	l.write(clearLine + cut(line, l.width-1))
}

// Print says something that stays.
func (l *Line) Print(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ") + "\n"
	if l.terminal {
		text = clearLine + text
	}
	l.write(text)
}

// Brief says what stays, and is in a table at the end, too: it is cut to a terminal's width.
func (l *Line) Brief(text string) {
	if l.terminal {
		text = cut(text, l.width-1)
	}
	l.Print("%s", text)
}

// End leaves the terminal's line empty.
func (l *Line) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.terminal {
		l.write(clearLine)
	}
}

// write ignores errors: who closed the output does not want to know more.
func (l *Line) write(s string) { _, _ = io.WriteString(l.out, s) }

// cut shortens a line to a number of characters.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:max(0, width-1)]) + "…"
}

// Group writes a whole number in groups of three digits.
func Group(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
