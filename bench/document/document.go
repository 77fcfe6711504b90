// Package document writes what was measured: JSON for programs, and files that are
// there as a whole or not at all.
package document

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
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

// Replace writes a file as a whole or not at all. A pipe or a terminal that path names,
// also by a link as /dev/stdout is, gets the text and stays what it is. Other links,
// folders, sockets and block devices are refused: nobody means to lose them, and a link
// in a folder of others leads where they want it.
func Replace(path, text string) error {
	through, err := lookAt(path)
	switch {
	case err != nil:
	case through:
		err = writeThrough(path, text)
	default:
		err = swap(path, text)
	}
	if err != nil {
		return fmt.Errorf("write the report to %s: %w", path, bare(err))
	}
	return nil
}

// Writable says why [Replace] could not write the file that an option of the command line
// names, before anything is measured for it. It leaves nothing behind. An option that was not
// given has an empty path.
func Writable(option, path string) error {
	if path == "" {
		return nil
	}
	through, err := lookAt(path)
	if err == nil && !through {
		var f *os.File
		if f, err = os.CreateTemp(filepath.Dir(path), ".report-"); err == nil {
			err = errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: the report %s cannot be written: %w; name a file in a folder that is there and may be written to", option, path, bare(err))
	}
	return nil
}

// bare is an error of a file without the file's name: the user gave another, and knows nothing of
// the one beside it that becomes the report.
func bare(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// lookAt says whether path is to be written through rather than replaced, or why neither.
func lookAt(path string) (through bool, err error) {
	if path == Standard {
		return false, fmt.Errorf("%q stands for standard output, which this report does not go to; ./%s is a file of that name", path, path)
	}
	named, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || named.Mode().IsRegular() {
		return false, err
	}
	there, err := os.Stat(path)
	switch {
	case err != nil:
		return false, err
	case there.Mode()&(fs.ModeNamedPipe|fs.ModeCharDevice) != 0:
		return true, nil
	case named.Mode()&fs.ModeSymlink != 0:
		return false, errors.New("it is a symbolic link; name the file itself")
	}
	return false, fmt.Errorf("it is there, and no file (%v); name another one", there.Mode())
}

// writeThrough writes to a pipe or a device. A pipe that nobody reads is an error.
func writeThrough(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// swap puts a new file in the place of the one at path.
func swap(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".report-")
	if err != nil {
		return err
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
	return err
}
