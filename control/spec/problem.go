package spec

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a [State].
type Problem struct {
	// Path says where, such as "networks[2].cidr".
	Path string
	// Message says what is wrong, Remedy what would be right; neither ends in a full stop.
	Message string
	Remedy  string
}

// Error implements error: path, message and remedy in one line.
func (p Problem) Error() string { return p.Path + ": " + p.Message + "; " + p.Remedy }

// Problems is what [State.Validate] finds, in the order of the state.
type Problems []Problem

// Err returns nil for none, and else an error with one line per problem.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// Error implements error.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// at builds a path: at("networks", 2, "cidr") is "networks[2].cidr".
func at(steps ...any) string {
	var b strings.Builder
	for _, s := range steps {
		switch s := s.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", s)
		case string:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s)
		}
	}
	return b.String()
}
