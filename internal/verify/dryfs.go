package verify

import (
	"io/fs"
	"os"
	"path/filepath"

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
	if flag&writeFlags != 0 {
		if err := d.written.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return nil, err
		}
		return d.written.OpenFile(name, flag|os.O_CREATE, perm)
	}
	if _, err := d.written.Stat(name); err == nil {
		return d.written.OpenFile(name, flag, perm)
	}
	return d.FS.OpenFile(name, flag, perm)
}

// Stat knows what was written.
func (d dryFS) Stat(name string) (fs.FileInfo, error) {
	if info, err := d.written.Stat(name); err == nil && !info.IsDir() {
		return info, nil
	}
	return d.FS.Stat(name)
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
