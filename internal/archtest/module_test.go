package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// modulePath is the module's own import path.
const modulePath = "github.com/sallyport-net/sallyport"

// source is one Go file of the module.
type source struct {
	name    string // path from the module's root
	dir     string
	test    bool
	lines   int
	tidy    bool // as gofmt writes it
	imports []string
	syntax  *ast.File
}

// module is all Go files.
type module struct {
	fset  *token.FileSet
	files []source
}

// load parses every Go file below the root, except in hidden folders, testdata and
// build output.
func load(root fs.FS) (*module, error) {
	m := &module{fset: token.NewFileSet()}
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if entry.IsDir() {
			hidden := name != "." && (base[0] == '.' || base[0] == '_')
			if hidden || base == "testdata" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(base) != ".go" {
			return nil
		}
		f, err := m.parse(root, name)
		if err == nil {
			m.files = append(m.files, f)
		}
		return err
	})
	return m, err
}

func (m *module) parse(root fs.FS, name string) (source, error) {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return source{}, err
	}
	f := source{name: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), lines: bytes.Count(text, []byte("\n"))}
	f.syntax, err = parser.ParseFile(m.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return source{}, err
	}
	formatted, err := format.Source(text)
	if err != nil {
		return source{}, err
	}
	f.tidy = bytes.Equal(text, formatted)
	for _, spec := range f.syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return source{}, fmt.Errorf("%s: %w", name, err)
		}
		f.imports = append(f.imports, imported)
	}
	return f, nil
}

// at says where a node stands.
func (m *module) at(n ast.Node) string {
	p := m.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// dirs returns the folders with Go files, in order.
func (m *module) dirs() []string {
	var dirs []string
	for _, f := range m.files {
		if !slices.Contains(dirs, f.dir) {
			dirs = append(dirs, f.dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// under says whether a path is prefix or below it.
func under(name, prefix string) bool {
	return name == prefix || strings.HasPrefix(name, prefix+"/")
}

// roomOf returns the row of the plan that covers a folder: the longest.
func roomOf(dir string) (room, bool) {
	var best room
	for _, r := range plan {
		if under(dir, r.path) && len(r.path) > len(best.path) {
			best = r
		}
	}
	return best, best.path != ""
}

// allows says whether the row lets its room import the folder dir.
func (r room) allows(dir string) bool {
	to, ok := roomOf(dir)
	if !ok || to.path == r.path {
		return ok
	}
	return slices.ContainsFunc(r.may, func(pattern string) bool {
		below, wild := strings.CutSuffix(pattern, "/*")
		return pattern == "*" || pattern == to.path || (wild && strings.HasPrefix(to.path, below+"/"))
	})
}
