package scenario

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// progress says what is going on: on a terminal by one line that is written again and
// again, else by a line for each step. Its methods may be called by anyone.
type progress struct {
	out      io.Writer
	terminal bool
	width    int

	mu    sync.Mutex
	what  string // scenario and step
	began time.Time
	takes time.Duration // about; 0: unknown
	shown time.Time     // when the line was written last
}

// The control sequences of ECMA-48 that are used, and the line's least width and pace.
const (
	clearLine  = "\r\x1b[K"
	usualWidth = 80
	repaint    = 100 * time.Millisecond
)

// newProgress says nothing if out is nil.
func newProgress(out io.Writer, terminal bool, width int) *progress {
	if out == nil {
		out = io.Discard
	}
	if width <= 0 {
		width = usualWidth
	}
	return &progress{out: out, terminal: terminal, width: width}
}

// begin begins something that takes a while.
func (p *progress) begin(what string, now time.Time, takes time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what, p.began, p.takes, p.shown = what, now, takes, time.Time{}
	p.paint(now, "")
}

// rate says how fast it goes, and what part is lost (less than 0: nobody knows).
func (p *progress) rate(now time.Time, perSecond, loss float64) {
	text := group(perSecond) + "/s"
	if loss >= 0 {
		text += fmt.Sprintf("  %.2f %% lost", 100*loss)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paint(now, text)
}

// elapsed says how far it is, where nobody knows how fast it goes.
func (p *progress) elapsed(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paint(now, "")
}

// paint writes the line on a terminal. The caller holds p.mu.
func (p *progress) paint(now time.Time, text string) {
	if !p.terminal || now.Sub(p.shown) < repaint {
		return
	}
	p.shown = now
	line := p.what
	if p.takes > 0 {
		done := min(1, max(0, float64(now.Sub(p.began))/float64(p.takes)))
		line += fmt.Sprintf("  %3.0f %%", 100*done)
	}
	if text != "" {
		line += "  " + text
	}
	p.write(clearLine + cut(line, p.width-1))
}

// line says something that stays.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ") + "\n"
	if p.terminal {
		text = clearLine + text
	}
	p.write(text)
}

// brief says what stays and is in the table, too: it is cut to a terminal's width.
func (p *progress) brief(text string) {
	if p.terminal {
		text = cut(text, p.width-1)
	}
	p.line("%s", text)
}

// end leaves the terminal's line empty.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		p.write(clearLine)
	}
}

// write ignores errors: who closed the output does not want to know more.
func (p *progress) write(s string) { _, _ = io.WriteString(p.out, s) }

// cut shortens a line to a number of characters.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:max(0, width-1)]) + "…"
}

// group writes a whole number in groups of three digits.
func group(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
