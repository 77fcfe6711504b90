package gateway

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxStateFile bounds what is read and written, in bytes: 131,072 attachments and
// 10,000 networks take about 70 MiB.
const maxStateFile = 256 << 20

// readStateFile reads the file of a former start. The error wraps
// [fs.ErrNotExist] where there was none.
func readStateFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	case info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("others may write it (mode %04o)", info.Mode().Perm())
	case info.Size() > maxStateFile:
		return nil, fmt.Errorf("it has more than %d MiB", maxStateFile>>20)
	}
	return io.ReadAll(io.LimitReader(f, maxStateFile))
}

// writeStateFile replaces the file by b. Whenever the process or the machine
// stops, there is the old file or the new one, whole: the new one is on the disk
// before its name is, and the name before the call returns.
func writeStateFile(path string, b []byte) (err error) {
	if len(b) > maxStateFile {
		return fmt.Errorf("the file would have more than %d MiB", maxStateFile>>20)
	}
	folder, next := filepath.Dir(path), path+".new"
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	// What a former process left half written.
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(next)
		}
	}()
	if err := writeWhole(next, b); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncFolder(folder)
}

// writeWhole writes a new file to the disk.
func writeWhole(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncFolder puts the names of a folder on the disk.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
