// Package progress says what is going on in a measurement: on a terminal by a line below all
// others that is painted again and again, else by lines for what is done.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/vbauerster/mpb/v8"
)

// Line is that line, and those that stay above it. Its methods may be called by anyone.
type Line struct {
	out      io.Writer
	terminal bool
	width    int

	mu    sync.Mutex
	bars  *mpb.Progress // from the first work on
	bar   *mpb.Bar      // of work; nil: nothing is going on
	work  *work
	ended bool
}

const (
	// clearLine is of ECMA-48. What is typed is echoed behind the line, and so where the next
	// would begin.
	clearLine  = "\r\x1b[K"
	usualWidth = 80
	repaint    = 100 * time.Millisecond
)

// New makes one that says nothing if out is nil. width is a terminal's, in columns; 0: the usual.
// A terminal that is an [os.File] is asked for its width by each painting.
func New(out io.Writer, terminal bool, width int) *Line {
	if out == nil {
		out, terminal = io.Discard, false
	}
	if width <= 0 {
		width, out = usualWidth, struct{ io.Writer }{out} // that is not asked, as it does not know
	}
	return &Line{out: out, terminal: terminal, width: width}
}

// Work begins something that takes a while, and takes the place of what did before. Until stop is
// called a terminal shows how far it is. takes is about how long; 0: unknown.
func (l *Line) Work(what string, takes time.Duration) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.terminal || l.ended {
		return func() {}
	}
	if l.bars == nil {
		l.bars = mpb.New(mpb.WithOutput(l.out), mpb.WithWidth(l.width), mpb.WithAutoRefresh(), mpb.WithRefreshRate(repaint))
	}
	l.clear()
	w := newWork(what, takes)
	l.work = w
	// An error means that the terminal takes no more: nobody sees what is not painted.
	l.bar, _ = l.bars.Add(0, w, w.options()...)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.work == w {
			l.clear()
		}
	}
}

// clear takes away what is going on. The caller holds l.mu.
func (l *Line) clear() {
	if l.bar != nil {
		l.bar.Abort(true)
		l.bar.Wait() // else two would be painted for a moment
	}
	l.bar, l.work = nil, nil
}

// Rate says how fast it goes, and what part is lost (less than 0: nobody knows).
func (l *Line) Rate(perSecond, loss float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.work != nil {
		l.work.rate.Store(&rate{perSecond: perSecond, loss: loss})
	}
}

// Print says something that stays.
func (l *Line) Print(format string, args ...any) {
	l.print(strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "))
}

// Brief says what stays, and is in a table at the end, too: it is cut to a terminal's width.
func (l *Line) Brief(text string) {
	text = strings.ReplaceAll(text, "\n", "; ")
	if l.terminal {
		text = cut(text, l.width-1)
	}
	l.print(text)
}

func (l *Line) print(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
	case l.bars != nil:
		l.write(l.bars, clearLine+line+"\n")
	default:
		l.write(l.out, line+"\n")
	}
}

// End leaves the lines that stay, and waits until they are written. Nothing is said any more.
func (l *Line) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.bars == nil {
		return
	}
	l.clear()
	l.bars.Wait()
	l.bars = nil
	l.write(l.out, clearLine)
}

// write ignores errors: who closed the output does not want to know more.
func (l *Line) write(to io.Writer, s string) { _, _ = io.WriteString(to, s) }

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
