package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxFile bounds what is read of one file. The desired state of 10,000 networks
// takes about 4 MiB.
const maxFile = 16 << 20

// byteOrderMark is what some editors put before UTF-8 text. It says nothing.
const byteOrderMark = "\xef\xbb\xbf"

// position is a place in a file; both count from 1.
type position struct{ line, column int }

// document is one YAML file on its way to a value: what decode has seen of it
// and what is wrong with it.
type document struct {
	name     string
	root     ast.Node // nil: the file says nothing
	at       map[string]position
	empty    map[string]bool // keys that stand there without a value
	unread   map[string]bool // keys whose values could not be read
	problems Problems
}

// readDocument parses a file. The error is a [Problems], or of the reader.
func readDocument(name string, r io.Reader) (*document, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	d := &document{name: name, at: map[string]position{"": {1, 1}}, empty: make(map[string]bool)}
	if len(raw) > maxFile {
		d.add(position{1, 1}, "", fmt.Sprintf("the file has more than %d MiB", maxFile>>20), "is this the right file?")
		return nil, d.problems
	}
	tokens := lexer.Tokenize(string(bytes.TrimPrefix(raw, []byte(byteOrderMark))))
	if deep := tooDeep(tokens); deep != nil {
		d.add(tokenPosition(deep), "", fmt.Sprintf("more than %d mappings and lists stand in one another here", maxDepth), "is this the right file?")
		return nil, d.problems
	}
	file, err := parse(tokens)
	if err != nil {
		d.syntax(err)
		return nil, d.problems
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if d.root != nil {
			d.add(where(doc.Body), "", "a second YAML document begins here", "write one document per file")
			return nil, d.problems
		}
		d.root = doc.Body
	}
	return d, nil
}

// parse runs the YAML parser, which is not ours: a panic in it, on whatever
// bytes, is an error like any other.
func parse(tokens token.Tokens) (file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the YAML parser gave up: %v", p)
		}
	}()
	return parser.Parse(tokens, 0)
}

func (d *document) syntax(err error) {
	pos, message := position{1, 1}, err.Error()
	var located yaml.Error
	if errors.As(err, &located) {
		message = located.GetMessage()
		if t := located.GetToken(); t != nil {
			pos = tokenPosition(t)
		}
	}
	d.add(pos, "", "not YAML: "+firstLine(message), "correct the line or the one above it")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func (d *document) add(pos position, key, message, remedy string) {
	d.problems = append(d.problems, Problem{File: d.name, Line: pos.line, Column: pos.column, Key: key, Message: message, Remedy: remedy})
}

// wrong adds a problem at a key, or, if the file does not have the key, where it
// would be. Of a value that could not be read this has been said, and is enough.
func (d *document) wrong(key, message, remedy string) {
	if !d.unread[key] {
		d.add(d.find(key), key, message, remedy)
	}
}

// find is where a key stands, or the nearest one around it that does.
func (d *document) find(key string) position {
	for {
		if pos, ok := d.at[key]; ok {
			return pos
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
}

func where(n ast.Node) position {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		return where(m.Values[0].Key) // the token of a block mapping is its first colon
	}
	return tokenPosition(n.GetToken())
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{max(t.Position.Line, 1), max(t.Position.Column, 1)}
}
