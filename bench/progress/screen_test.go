package progress

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// screen is a terminal of endless height, as far as is needed.
type screen struct {
	t     *testing.T
	width int

	mu       sync.Mutex
	rows     [][]rune
	row, col int
	bytes    int // how many were written
	wraps    int // how often a line was broken
}

func newScreen(t *testing.T, width int) *screen {
	return &screen{t: t, width: width, rows: [][]rune{nil}}
}

// Write implements io.Writer.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += len(p)
	text := []rune(string(p))
	for len(text) > 0 {
		text = text[s.take(text):]
	}
	return len(p), nil
}

// take does what the first characters say, and returns how many they are.
func (s *screen) take(text []rune) int {
	switch text[0] {
	case '\r':
		s.col = 0
	case '\n': // as a terminal's driver has it: with a carriage return
		s.down()
	case '\x1b':
		n, code := 0, rune(0)
		if _, err := fmt.Sscanf(string(text[1:]), "[%d%c", &n, &code); err != nil {
			_, err = fmt.Sscanf(string(text[1:]), "[%c", &code)
			if err != nil {
				s.t.Errorf("a sequence that no terminal knows: %q", string(text))
			}
		}
		switch code {
		case 'A':
			if s.row -= n; s.row < 0 {
				s.t.Errorf("%d lines up from line %d", n, s.row+n)
				s.row = 0
			}
		case 'J':
			s.rows = s.rows[:s.row+1]
			fallthrough
		case 'K':
			s.rows[s.row] = s.rows[s.row][:min(s.col, len(s.rows[s.row]))]
		default:
			s.t.Errorf("a sequence that is not expected: %q", string(text))
		}
		return strings.IndexRune(string(text), code) + 1
	default:
		if s.col == s.width {
			s.wraps++
			s.down()
		}
		row := s.rows[s.row]
		for len(row) <= s.col {
			row = append(row, ' ')
		}
		row[s.col] = text[0]
		s.rows[s.row] = row
		s.col++
	}
	return 1
}

func (s *screen) down() {
	s.row, s.col = s.row+1, 0
	if s.row == len(s.rows) {
		s.rows = append(s.rows, nil)
	}
}

// lines are what is to be seen, without blanks at the ends.
func (s *screen) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, row := range s.rows[:len(s.rows)-1] {
		all = append(all, strings.TrimRight(string(row), " "))
	}
	if last := s.rows[len(s.rows)-1]; len(last) > 0 {
		all = append(all, string(last))
	}
	return all
}

// home says whether the next line begins where nothing is.
func (s *screen) home() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.col == 0 && s.row == len(s.rows)-1 && len(s.rows[s.row]) == 0
}

// written is how much was written, in bytes.
func (s *screen) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}
