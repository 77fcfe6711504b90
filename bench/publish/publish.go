// Package publish writes the report of benchmarks: it reads what commands measured, and
// writes documents and pictures of it.
package publish

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/report"
)

// Config says where things are.
type Config struct {
	// Parts is the folder with the parts, NAME.json, into which documents and pictures go, too.
	Parts string
	// Document is the file whose marked part is replaced.
	Document string
	// Out is told of what is left out.
	Out io.Writer
}

// files are those that are written, by path.
type files map[string]string

// Run writes all that follows from the parts, and changes nothing if a part cannot be read.
func Run(cfg Config) error {
	list, err := cfg.files()
	if err != nil {
		return fmt.Errorf("publish benchmarks: %w", err)
	}
	for path, text := range list {
		err = errors.Join(err, document.Replace(path, text))
	}
	_, partial, gerr := cfg.find()
	for _, path := range partial {
		_, perr := fmt.Fprintf(cfg.Out, "%s is left out: its run did not measure everything.\n", path)
		err = errors.Join(err, perr)
	}
	return errors.Join(err, gerr)
}

// find lists the parts, and what runs left that did not measure everything.
func (cfg Config) find() (parts, partial []string, err error) {
	paths, err := filepath.Glob(filepath.Join(cfg.Parts, "*.json"))
	if err != nil {
		return nil, nil, fmt.Errorf("look for parts: %w", err)
	}
	for _, path := range paths {
		if document.IsPartial(path) {
			partial = append(partial, path)
		} else {
			parts = append(parts, path)
		}
	}
	return parts, partial, nil
}

func (cfg Config) files() (files, error) {
	parts, err := cfg.read()
	if err != nil {
		return nil, err
	}
	r, err := report.New(parts)
	if err != nil {
		return nil, err
	}
	old, err := os.ReadFile(cfg.Document)
	if err != nil {
		return nil, fmt.Errorf("read the document whose part is to be replaced: %w", err)
	}
	changed, err := report.Replace(string(old), "![Ratios](benchmarks/ratios.svg)\n\n"+r.Targets())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Document, err)
	}
	return files{
		cfg.Document:                              changed,
		filepath.Join(cfg.Parts, "measured.md"):   r.Measured(),
		filepath.Join(cfg.Parts, "ratios.svg"):    r.Ratios().File(),
		filepath.Join(cfg.Parts, "measured.html"): page(r),
	}, nil
}

// read reads all parts.
func (cfg Config) read() (parts []*report.Part, err error) {
	paths, _, err := cfg.find()
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("there is no part in %s: measure one first (make bench-report RUN=tcp)", cfg.Parts)
	}
	for _, path := range paths {
		p, err := readPart(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

func readPart(path string) (*report.Part, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return report.Read(strings.TrimSuffix(filepath.Base(path), ".json"), f)
}
