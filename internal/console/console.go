// Package console prints what the programs' commands say: tables for people,
// cleaned of whatever would act on a terminal, and JSON for other programs.
package console

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
)

// JSON prints a value for other programs, indented. The error is that of the value or of w.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Table collects rows and prints them in columns. Its zero value is empty.
type Table struct{ rows [][]string }

// Row adds a row. Whatever comes from elsewhere is cleaned here; an empty cell
// becomes "-".
func (t *Table) Row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if row[i] = strings.ReplaceAll(Clean(fmt.Sprint(c)), "\n", "�"); row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// Print writes the rows, columns two blanks apart. The error is that of w.
func (t *Table) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		// Without a tab after the last cell, so that lines have no blanks at their ends.
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// PrintAll prints tables with blank lines between them, without those after the
// first that have nothing but a title. The error is that of w.
func PrintAll(w io.Writer, tables ...*Table) error {
	for i, t := range tables {
		if i > 0 && len(t.rows) < 2 {
			continue
		}
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		if err := t.Print(w); err != nil {
			return err
		}
	}
	return nil
}

// Clean replaces what does not print, such as the control characters that move a
// terminal's cursor or colour its text; line breaks stay.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
