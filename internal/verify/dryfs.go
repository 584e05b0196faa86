package verify

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/litefs/litefs/internal/vfs"
)

// dryFS is the disk, read only. Opening a log tidies it up and completes it: what that would write goes
// to memory, where it is read again, and what it would remove is taken for removed.
type dryFS struct {
	vfs.FS
	written *vfs.Mem
}

func newDryFS() dryFS { return dryFS{FS: vfs.OS(), written: vfs.NewMem()} }

const writeFlags = os.O_WRONLY | os.O_RDWR | os.O_CREATE | os.O_TRUNC | os.O_APPEND

func (d dryFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	_, missing := d.written.Stat(name)
	if missing != nil && flag&(os.O_CREATE|os.O_TRUNC) == 0 {
		f, err := d.FS.OpenFile(name, os.O_RDONLY, perm)
		if err != nil {
			return nil, err
		}
		return dryFile{f}, nil
	}
	if flag&writeFlags != 0 {
		if err := d.written.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return nil, err
		}
		return d.written.OpenFile(name, flag|os.O_CREATE, perm)
	}
	return d.written.OpenFile(name, flag, perm)
}

// dryFile is a file of the disk. What is written to it goes nowhere: a log writes to a file that is there only to have
// it synced, or forgotten.
type dryFile struct{ vfs.File }

func (dryFile) Write(b []byte) (int, error)            { return len(b), nil }
func (dryFile) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (dryFile) Truncate(int64) error                   { return nil }
func (dryFile) Sync() error                            { return nil }
func (dryFile) StartSync() error                       { return nil }

// Stat knows what was written.
func (d dryFS) Stat(name string) (fs.FileInfo, error) {
	if info, err := d.written.Stat(name); err == nil && !info.IsDir() {
		return info, nil
	}
	return d.FS.Stat(name)
}

// ReadDir lists what was written as well.
func (d dryFS) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := d.FS.ReadDir(name)
	written, werr := d.written.ReadDir(name)
	if err != nil || errors.Is(werr, fs.ErrNotExist) {
		return list, err
	}
	byName := func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) }
	list = append(list, written...)
	slices.SortStableFunc(list, byName)
	return slices.CompactFunc(list, func(a, b fs.DirEntry) bool { return a.Name() == b.Name() }), werr
}

// MkdirAll accepts a directory that exists.
func (d dryFS) MkdirAll(name string, _ fs.FileMode) error {
	_, err := d.FS.Stat(name)
	return err
}

// Rename moves what was written. Nothing else is ever renamed while a log is opened.
func (d dryFS) Rename(oldName, newName string) error { return d.written.Rename(oldName, newName) }

func (dryFS) Remove(string) error                         { return nil }
func (dryFS) SyncDir(string) error                        { return nil }
func (d dryFS) Mkdir(name string, perm fs.FileMode) error { return d.written.Mkdir(name, perm) }
