package config

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"

	"github.com/sallyport-net/sallyport/control/spec"
)

// decode fills *into, a struct, from the document, over whatever it holds: a key
// that the file does not have leaves its field alone. Unlike the YAML package's
// own decoder it goes on after a problem, and it remembers where each key stands.
func (d *document) decode(into any) {
	if d.root != nil {
		d.value(d.root, reflect.ValueOf(into).Elem(), "")
	}
	d.unread = make(map[string]bool)
	for _, p := range d.problems {
		d.unread[p.Key] = true
	}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (d *document) value(n ast.Node, v reflect.Value, key string) {
	if key != "" {
		d.at[key] = where(n)
	}
	switch n := n.(type) {
	case *ast.NullNode: // a key without a value: as though it were not there
		d.empty[key] = true
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		d.add(where(n), key, "anchors, aliases and tags are not read here", "write the value out")
		return
	case *ast.LiteralNode:
		d.value(n.Value, v, key)
		return
	}
	switch {
	case v.Type() == durationType || reflect.PointerTo(v.Type()).Implements(textType):
		d.text(n, v, key)
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), key)
	case v.Kind() == reflect.Struct:
		d.mapping(n, v, key)
	case v.Kind() == reflect.Map:
		d.named(n, v, key)
	case v.Kind() == reflect.Slice || v.Kind() == reflect.Array:
		d.sequence(n, v, key)
	default:
		d.scalar(n, v, key)
	}
}

// entries are the keys and values of a mapping.
func entries(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// named reads a mapping whose keys are names that the file chooses; the path of
// an entry is written key[name].
func (d *document) named(n ast.Node, v reflect.Value, key string) {
	values, ok := entries(n)
	if !ok {
		d.add(where(n), key, describe(n)+" stands where names are wanted", "write one line per name, with what belongs to it below")
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(values)))
	for _, m := range values {
		name, entry := keyText(m.Key), reflect.New(v.Type().Elem()).Elem()
		path := fmt.Sprintf("%s[%s]", key, name)
		d.value(m.Value, entry, path)
		d.at[path] = where(m.Key)
		v.SetMapIndex(reflect.ValueOf(name), entry)
	}
}

func (d *document) mapping(n ast.Node, v reflect.Value, key string) {
	values, ok := entries(n)
	if !ok {
		d.add(where(n), key, describe(n)+" stands where keys are wanted", "write keys such as "+strings.Join(keysOf(v.Type()), ", "))
		return
	}
	for _, m := range values {
		name := keyText(m.Key)
		path := join(key, name)
		field, ok := fieldOf(v, name)
		if !ok {
			d.add(where(m.Key), path, "unknown key", "the keys here are "+strings.Join(keysOf(v.Type()), ", "))
			continue
		}
		d.value(m.Value, field, path)
	}
}

func (d *document) sequence(n ast.Node, v reflect.Value, key string) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.add(where(n), key, describe(n)+" stands where a list is wanted", "write [a, b], or one line with a dash per entry")
		return
	}
	if v.Kind() == reflect.Array {
		if len(s.Values) != v.Len() {
			d.add(where(n), key, fmt.Sprintf("the list has %d entries", len(s.Values)), fmt.Sprintf("write exactly %d", v.Len()))
			return
		}
	} else {
		v.Set(reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values)))
	}
	for i, entry := range s.Values {
		d.value(entry, v.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
}

// text reads durations, addresses and everything else that parses itself.
func (d *document) text(n ast.Node, v reflect.Value, key string) {
	s, ok := scalarText(n)
	if !ok {
		d.unreadable(n, v, key, describe(n))
		return
	}
	if v.Type() == durationType {
		length, err := time.ParseDuration(s)
		if err != nil {
			d.unreadable(n, v, key, strconv.Quote(s))
			return
		}
		v.SetInt(int64(length))
		return
	}
	if v.Type() == prefixType {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" { // one address alone
			v.Set(reflect.ValueOf(netip.PrefixFrom(a, a.BitLen())))
			return
		}
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
		d.unreadable(n, v, key, strconv.Quote(s))
	}
}

func (d *document) scalar(n ast.Node, v reflect.Value, key string) {
	s, ok := scalarText(n)
	if !ok {
		d.unreadable(n, v, key, describe(n))
		return
	}
	var err error
	switch v.Kind() {
	case reflect.String:
		if _, isBool := n.(*ast.BoolNode); isBool {
			d.add(where(n), key, s+" is not text", "write it in quotes if text is meant")
			return
		}
		v.SetString(s)
	case reflect.Bool:
		b, isBool := n.(*ast.BoolNode)
		if !isBool {
			err = strconv.ErrSyntax
			break
		}
		v.SetBool(b.Value)
	case reflect.Int:
		var i int64
		if i, err = strconv.ParseInt(s, 10, 64); err == nil {
			v.SetInt(i)
		}
	case reflect.Uint16:
		var u uint64
		if u, err = strconv.ParseUint(s, 10, 16); err == nil {
			v.SetUint(u)
		}
	default:
		panic(fmt.Sprintf("config: no rule reads a %v", v.Type())) // a field of ours, not the file's fault
	}
	if err != nil {
		d.unreadable(n, v, key, strconv.Quote(s))
	}
}

// scalarText is a scalar as it was written.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return strings.TrimSpace(n.GetToken().Value), true
	}
	return "", false
}

// kindOf says in words what a value of a type is, with an example.
func kindOf(v reflect.Value) (what, example string) {
	switch v.Interface().(type) {
	case time.Duration:
		return "a length of time", "300s or 5m"
	case netip.Addr:
		return "an IP address", "203.0.113.7"
	case netip.Prefix:
		return "a valid CIDR", "10.20.0.0/16"
	case netip.AddrPort:
		return "an IP address and a port", "127.0.0.1:9469"
	case spec.PortRange:
		return "a port or a range of ports", "443 or 1000-2000"
	case time.Time:
		return "a time", "2025-01-02T15:04:05Z"
	}
	switch v.Kind() {
	case reflect.Bool:
		return "a truth value", "true or false"
	case reflect.Int:
		return "a whole number", "1000"
	case reflect.Uint16:
		return "a port", "51820"
	}
	return "text", `"text"`
}

// unreadable says that what was written is not of the kind that is wanted.
func (d *document) unreadable(n ast.Node, v reflect.Value, key, written string) {
	what, example := kindOf(v)
	d.add(where(n), key, written+" is not "+what, "write one such as "+example)
}

// describe names the kind of a node.
func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// keyText is a key as it stands in paths: quoted where it holds what does not print,
// which is never one of ours and would reach the reader's terminal.
func keyText(k ast.MapKeyNode) string {
	text := strings.TrimSpace(k.GetToken().Value)
	if s, ok := k.(*ast.StringNode); ok {
		text = s.Value
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// fieldOf finds a struct's field by the name that it has in files.
func fieldOf(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if fileName(v.Type().Field(i)) == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// keysOf lists the names of a struct's fields.
func keysOf(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		keys = append(keys, fileName(t.Field(i)))
	}
	return slices.Clip(keys)
}

// fileName is what a field is called in files: its yaml tag, and else its json tag.
func fileName(f reflect.StructField) string {
	tag, ok := f.Tag.Lookup("yaml")
	if !ok {
		tag = f.Tag.Get("json")
	}
	name, _, _ := strings.Cut(tag, ",")
	return name
}
