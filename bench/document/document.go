// Package document writes what was measured: JSON for programs, and files that are
// there as a whole or not at all.
package document

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// WriteJSON writes a document, indented.
func WriteJSON(out io.Writer, document any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if err := e.Encode(document); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Replace writes a file as a whole or not at all.
func Replace(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".report-")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	defer os.Remove(f.Name()) // it is not there any more if all went well
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the report to %s: %w", path, err)
	}
	return nil
}
