package demo

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// printer writes results as they come: in columns, or on a terminal that has no
// room for them, in paragraphs.
type printer struct {
	out            io.Writer
	terminal       bool // colours, and a line that says what is waited for
	name, expected int  // widths of columns
	width          int  // of paragraphs; 0: columns
}

// The control sequences of ECMA-48 that are used.
const (
	green, red, yellow, dim, plain = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
	clearLine                      = "\r\x1b[K"
)

const (
	// seenWidth is how wide the last column is but for a few lines.
	seenWidth = 60
	// usualWidth is that of a terminal that does not tell, leastWidth the least that
	// paragraphs are laid out for.
	usualWidth, leastWidth = 80, 40
)

// newPrinter measures what will be printed. It prints nothing if JSON is asked for.
func newPrinter(cfg Config, p *plan) *printer {
	out := &printer{out: cfg.Out, terminal: cfg.Terminal, name: len("what"), expected: len("expected")}
	if cfg.JSON {
		return &printer{out: io.Discard}
	}
	for _, c := range expectations(p) {
		out.measure(c.name, c.expected)
	}
	width := cfg.Width
	if width == 0 {
		width = usualWidth
	}
	if columns := 2 + out.name + 2 + out.expected + 2 + seenWidth; cfg.Terminal && width < columns {
		out.width = max(width, leastWidth)
	}
	return out
}

// measure makes the columns wide enough for a line.
func (p *printer) measure(name, expected string) {
	p.name = max(p.name, utf8.RuneCountInString(name))
	p.expected = max(p.expected, utf8.RuneCountInString(expected))
}

// begin says where the demo runs if that is not the usual world, and names the columns.
func (p *printer) begin(r *report) {
	p.clear()
	if r.World != worldNamespaces {
		text := "No namespaces can be made here: " + r.Why + "."
		if r.World == worldLoopback {
			text += " So everything runs on this machine's loopback, and functions use proxies, which confine nothing."
		}
		width := p.width
		if width == 0 {
			width = usualWidth
		}
		for _, line := range wrap(text, width) {
			p.write(line + "\n")
		}
		p.write("\n")
	}
	if p.width == 0 {
		p.write(p.paint(dim, fmt.Sprintf("  %s  %s  %s", pad("what", p.name), pad("expected", p.expected), "seen")) + "\n")
	}
}

// waiting says on a terminal what is going on.
func (p *printer) waiting(what string) {
	if p.terminal {
		p.write(clearLine + dim + "… " + what + plain)
	}
}

// result prints a line, or a paragraph.
func (p *printer) result(r result) {
	p.clear()
	mark, seen := p.paint(green, "✓"), r.Seen
	switch r.Status {
	case failed:
		mark = p.paint(red, "✗")
	case impossible:
		mark, seen = p.paint(yellow, "–"), "not possible here: "+seen
	}
	if p.width == 0 {
		p.write(fmt.Sprintf("%s %s  %s  %s\n", mark, pad(r.Name, p.name), pad(r.Expected, p.expected), seen))
		return
	}
	const indent = "  "
	for i, line := range wrap(r.Name+": "+seen, p.width-len(indent)) {
		if i > 0 {
			mark = " "
		}
		p.write(mark + " " + line + "\n")
	}
	for _, line := range wrap("expected "+r.Expected, p.width-len(indent)) {
		p.write(indent + p.paint(dim, line) + "\n")
	}
}

// end prints what all of it means.
func (p *printer) end(r *report) {
	p.clear()
	for _, name := range slices.Sorted(maps.Keys(r.Logs)) {
		p.write(fmt.Sprintf("\nthe end of %s's log:\n%s", name, r.Logs[name]))
	}
	if r.Failure != "" {
		lines := []string{r.Failure}
		if p.width > 0 {
			lines = wrap(r.Failure, p.width)
		}
		p.write("\n" + p.paint(red, "The demo could not go on:") + "\n" + strings.Join(lines, "\n") + "\n")
	}
	p.write(fmt.Sprintf("\n%d held, %d failed, %d not possible here, in %.1f s\n",
		r.count(held), r.count(failed), r.count(impossible), r.Took.Seconds()))
}

func (p *printer) clear() {
	if p.terminal {
		p.write(clearLine)
	}
}

func (p *printer) paint(colour, text string) string {
	if !p.terminal {
		return text
	}
	return colour + text + plain
}

// write ignores errors: who closed the output does not want to know more.
func (p *printer) write(s string) { _, _ = io.WriteString(p.out, s) }

// pad fills up to a width in characters.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

// wrap breaks a text at spaces into lines of at most some characters; a word that
// is longer has a line of its own.
func wrap(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
