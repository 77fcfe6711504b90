package document

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Standard is the path that stands for standard output.
const Standard = "-"

// Output is the file for a report of a measurement.
type Output struct {
	// Path is the file; empty: nothing is written.
	Path string
	// To gets the report if Path is [Standard]; nil: it cannot go there.
	To io.Writer
	// Whole keeps what the file has if not everything could be measured. What could goes to
	// [Output.Partial] then.
	Whole bool
}

// Name is that of the file without .json, or another one where there is no file.
func (o Output) Name(otherwise string) string {
	if o.Path == "" || o.Path == Standard {
		return otherwise
	}
	return strings.TrimSuffix(filepath.Base(o.Path), jsonSuffix)
}

// Partial is the file beside the one at Path: x.partial.json for x.json.
func (o Output) Partial() string {
	name, json := strings.CutSuffix(o.Path, jsonSuffix)
	if !json {
		return o.Path + partialInfix
	}
	return name + partialInfix + jsonSuffix
}

const (
	jsonSuffix   = ".json"
	partialInfix = ".partial"
)

// IsPartial says whether a file's name is one that [Output.Partial] makes of *.json.
func IsPartial(path string) bool { return strings.HasSuffix(path, partialInfix+jsonSuffix) }

// Write writes a document in one piece, or nothing. whole says that everything was measured
// that was asked for, whatever came of it. With Whole set it is an error, which names both
// files, if it was not; if it was, an earlier part of it is of no use any more and goes.
// What is at Path and no file, like a pipe, has nothing to keep, nor has standard output.
func (o Output) Write(document any, whole bool) error {
	if o.Path == "" {
		return nil
	}
	var text strings.Builder
	if err := WriteJSON(&text, document); err != nil {
		return err
	}
	if through, err := lookAt(o.Path); !o.Whole || through || o.standard() || err != nil {
		return o.WriteText(text.String())
	}
	if !whole {
		if err := Replace(o.Partial(), text.String()); err != nil {
			return err
		}
		return fmt.Errorf("not everything was measured: what was is in %s, and %s stays as it was", o.Partial(), o.Path)
	}
	if err := Replace(o.Path, text.String()); err != nil {
		return err
	}
	if err := os.Remove(o.Partial()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what was measured of %s before: %w", o.Path, err)
	}
	return nil
}

// WriteText writes a text in one piece, or nothing.
func (o Output) WriteText(text string) error {
	switch {
	case o.Path == "":
		return nil
	case !o.standard():
		return Replace(o.Path, text)
	}
	if _, err := io.WriteString(o.To, text); err != nil {
		return fmt.Errorf("write the report to standard output: %w", err)
	}
	return nil
}

// standard says whether the report goes to standard output.
func (o Output) standard() bool { return o.Path == Standard && o.To != nil }

// Check says why [Output.Write] could not write, before anything is measured for it.
func (o Output) Check(option string) error {
	switch {
	case o.Whole && o.Path == "":
		return fmt.Errorf("there is no file that --whole could keep: name one by %s", option)
	case o.standard():
		return nil
	}
	err := Writable(option, o.Path)
	if err == nil && o.Whole {
		if through, _ := lookAt(o.Path); !through {
			err = Writable(option, o.Partial())
		}
	}
	return err
}
