package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"path"
	"slices"
	"strings"
)

// A check looks at the module and returns what is wrong, each finding with the
// place, what it is, and why it matters.
type check struct {
	name string
	run  func(*module) []string
}

var checks = []check{
	{"every folder has a room", checkRooms},
	{"imports follow the floor plan", checkArrows},
	{"foreign modules stay in their rooms", checkOutsiders},
	{"pure packages are pure", checkPure},
	{"one package comment per folder", checkPackageComments},
	{"files are formatted and short", checkFiles},
	{"package names say something", checkNames},
	{"no init and no state at package level", checkState},
	{"constructors take few arguments", checkConstructors},
	{"nothing is left to do", checkLeftovers},
	{"tests do not sleep", checkSleep},
}

func checkRooms(m *module) (found []string) {
	for _, dir := range m.dirs() {
		if _, ok := roomOf(dir); !ok {
			found = append(found, fmt.Sprintf("%s: the floor plan has no such room: decide what it may import and why, and change the plan in internal/archtest and docs/architecture.md together", dir))
		}
	}
	return found
}

func checkArrows(m *module) (found []string) {
	for _, f := range m.files {
		from, ok := roomOf(f.dir)
		if f.test || !ok {
			continue
		}
		for _, imported := range f.imports {
			dir, ours := strings.CutPrefix(imported, modulePath+"/")
			if ours && !from.allows(dir) {
				found = append(found, fmt.Sprintf("%s imports %s, which %s may not: %s", f.name, dir, from.path, from.why))
			}
		}
	}
	return found
}

func checkOutsiders(m *module) (found []string) {
	for _, f := range m.files {
		for _, imported := range f.imports {
			for _, o := range outsiders {
				at := slices.ContainsFunc(o.only, func(room string) bool { return under(f.dir, room) })
				if under(imported, o.module) && !at {
					found = append(found, fmt.Sprintf("%s imports %s: %s", f.name, imported, o.why))
				}
			}
		}
	}
	return found
}

func checkPure(m *module) (found []string) {
	for _, f := range m.files {
		r, _ := roomOf(f.dir)
		if f.test || !r.pure {
			continue
		}
		for _, imported := range f.imports {
			for prefix, why := range impure {
				if under(imported, prefix) && !slices.Contains(impureExceptions, imported) {
					found = append(found, fmt.Sprintf("%s imports %s, but %s is pure: %s", f.name, imported, r.path, why))
				}
			}
		}
		found = append(found, m.impureUses(f, r)...)
	}
	return found
}

// impureUses finds goroutines, clocks and unseeded chance in a file.
func (m *module) impureUses(f source, r room) (found []string) {
	clock, chance := localName(f.syntax, "time"), localName(f.syntax, "math/rand/v2")
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, fmt.Sprintf("%s starts a goroutine, but %s is pure: who calls it decides what runs when", m.at(n), r.path))
		case *ast.SelectorExpr:
			if isUse(n, clock) && slices.Contains(impureTime, n.Sel.Name) {
				found = append(found, fmt.Sprintf("%s uses time.%s, but %s is pure: take now as an argument", m.at(n), n.Sel.Name, r.path))
			}
			if isUse(n, chance) && !slices.Contains(pureRand, n.Sel.Name) {
				found = append(found, fmt.Sprintf("%s uses rand.%s, but %s is pure: take a seed for a generator of its own", m.at(n), n.Sel.Name, r.path))
			}
		}
		return true
	})
	return found
}

// localName returns the name by which a file knows a package; "" if it does not.
func localName(f *ast.File, imported string) string {
	for _, spec := range f.Imports {
		if spec.Path.Value == `"`+imported+`"` {
			if spec.Name != nil {
				return spec.Name.Name
			}
			return path.Base(strings.TrimSuffix(imported, "/v2"))
		}
	}
	return ""
}

// isUse says whether n is something of the package that the file knows as pkg.
func isUse(n *ast.SelectorExpr, pkg string) bool {
	id, ok := n.X.(*ast.Ident)
	return ok && pkg != "" && id.Name == pkg
}

func checkPackageComments(m *module) (found []string) {
	for _, dir := range m.dirs() {
		var with []string
		code := false
		for _, f := range m.files {
			if f.dir != dir || f.test {
				continue
			}
			code = true
			if f.syntax.Doc != nil {
				with = append(with, f.name)
			}
		}
		if code && len(with) != 1 {
			found = append(found, fmt.Sprintf("%s: %d files have a package comment %v: one says what the package is for, in one place", dir, len(with), with))
		}
	}
	return found
}

func checkFiles(m *module) (found []string) {
	for _, f := range m.files {
		if !f.tidy {
			found = append(found, f.name+": not as gofmt writes it: run gofmt -w on it")
		}
		if !f.test && f.lines > maxLines {
			found = append(found, fmt.Sprintf("%s: %d lines are more than %d: divide it where its story divides", f.name, f.lines, maxLines))
		}
	}
	return found
}

func checkNames(m *module) (found []string) {
	for _, dir := range m.dirs() {
		if slices.Contains(emptyNames, path.Base(dir)) {
			found = append(found, dir+": the name does not say what is inside: name it after what it does")
		}
	}
	return found
}

func checkConstructors(m *module) (found []string) {
	for _, f := range m.files {
		if f.test {
			continue
		}
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "New") && fn.Type.Params.NumFields() > maxConstructor {
				found = append(found, fmt.Sprintf("%s: %s takes %d arguments, more than %d: make a Config with validate", m.at(fn), fn.Name.Name, fn.Type.Params.NumFields(), maxConstructor))
			}
		}
	}
	return found
}

func checkLeftovers(m *module) (found []string) {
	for _, f := range m.files {
		for _, group := range f.syntax.Comments {
			for _, c := range group.List {
				for _, mark := range []string{"TODO", "FIXME", "XXX"} {
					if strings.Contains(c.Text, mark) {
						found = append(found, fmt.Sprintf("%s: %s: do it now or write down in the documentation that it is not done", m.at(c), mark))
					}
				}
			}
		}
	}
	return found
}

func checkSleep(m *module) (found []string) {
	for _, f := range m.files {
		clock := localName(f.syntax, "time")
		if !f.test || clock == "" {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && isUse(s, clock) && s.Sel.Name == "Sleep" {
				found = append(found, m.at(s)+": a test that sleeps is slow on a fast machine and wrong on a slow one: wait for the condition")
			}
			return true
		})
	}
	return found
}

// checkState finds init functions and package variables that can change: those
// without a value, those that something assigns to or takes the address of, and
// those whose type is made for changing. Tables and errors that are set once
// are fine.
func checkState(m *module) (found []string) {
	for _, dir := range m.dirs() {
		var files []*ast.File
		for _, f := range m.files {
			if f.dir == dir && !f.test {
				files = append(files, f.syntax)
			}
		}
		info := &types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}}
		// Names within the package are all that is needed, so imports may fail.
		conf := types.Config{Error: func(error) {}, Importer: noImporter{}}
		pkg, _ := conf.Check(dir, m.fset, files, info)
		for _, f := range files {
			found = append(found, m.declaredState(f)...)
			ast.Inspect(f, func(n ast.Node) bool {
				for _, target := range changed(n) {
					v, ok := info.Uses[target].(*types.Var)
					if ok && pkg != nil && v.Parent() == pkg.Scope() {
						found = append(found, fmt.Sprintf("%s: %s is package state that changes: put it into a type", m.at(n), target.Name))
					}
				}
				return true
			})
		}
	}
	return found
}

type noImporter struct{}

func (noImporter) Import(name string) (*types.Package, error) {
	return nil, fmt.Errorf("%s is not loaded", name)
}

// declaredState returns the declarations of a file that are state by themselves.
func (m *module) declaredState(f *ast.File) (found []string) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				found = append(found, m.at(d)+": init runs before anyone can say with what: call it from main or a constructor")
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			for _, s := range d.Specs {
				spec := s.(*ast.ValueSpec)
				if why := stateful(f, d, spec); why != "" {
					found = append(found, fmt.Sprintf("%s: %s %s: put it into a type", m.at(spec), spec.Names[0].Name, why))
				}
			}
		}
	}
	return found
}

// stateful says why a package variable is state, or nothing.
func stateful(f *ast.File, d *ast.GenDecl, spec *ast.ValueSpec) string {
	if spec.Names[0].Name == "_" || embedded(d.Doc) || embedded(spec.Doc) {
		return ""
	}
	if len(spec.Values) == 0 && (f.Name.Name != "main" || spec.Names[0].Name != "version") { // which the linker sets
		return "has no value, so something must give it one later"
	}
	why := ""
	ast.Inspect(spec, func(n ast.Node) bool {
		if _, ok := n.(*ast.FuncLit); ok {
			return false
		}
		if s, ok := n.(*ast.SelectorExpr); ok {
			id, _ := s.X.(*ast.Ident)
			if id != nil && slices.Contains([]string{"sync", "atomic", "rand", "prometheus"}, id.Name) && s.Sel.Name != "NewDesc" {
				why = fmt.Sprintf("is made with %s.%s, which is made for changing", id.Name, s.Sel.Name)
			}
		}
		return true
	})
	return why
}

// embedded says whether a declaration gets its value from a file.
func embedded(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// changed returns the variables that a node writes to or lends out for writing.
func changed(n ast.Node) (ids []*ast.Ident) {
	switch n := n.(type) {
	case *ast.AssignStmt:
		for _, e := range n.Lhs {
			ids = append(ids, root(e)...)
		}
	case *ast.IncDecStmt:
		ids = root(n.X)
	case *ast.RangeStmt:
		if n.Tok == token.ASSIGN {
			ids = append(root(n.Key), root(n.Value)...)
		}
	case *ast.UnaryExpr:
		if n.Op == token.AND {
			ids = root(n.X)
		}
	case *ast.CallExpr:
		if fn, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && (fn.Name == "delete" || fn.Name == "clear") {
			ids = root(n.Args[0])
		}
	}
	return ids
}

// root returns the variable at the bottom of an expression like v.f[i].
func root(e ast.Expr) []*ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return []*ast.Ident{x}
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}
