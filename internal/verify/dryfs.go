package verify

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

// dryFS is the disk, read only. Opening a log tidies it up: its removals and its writes are taken for
// done and go nowhere, so that what the log says it dropped is what it would drop.
type dryFS struct{ vfs.FS }

const writeFlags = os.O_WRONLY | os.O_RDWR | os.O_CREATE | os.O_TRUNC | os.O_APPEND

func refused(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("verification changes nothing: %w", syscall.EROFS)}
}

func (d dryFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if flag&writeFlags != 0 {
		return nowhere{name}, nil
	}
	return d.FS.OpenFile(name, flag, perm)
}

// MkdirAll accepts a directory that exists.
func (d dryFS) MkdirAll(name string, _ fs.FileMode) error {
	_, err := d.Stat(name)
	return err
}

func (dryFS) Remove(string) error                    { return nil }
func (dryFS) SyncDir(string) error                   { return nil }
func (dryFS) Rename(oldName, _ string) error         { return refused("rename", oldName) }
func (dryFS) Mkdir(name string, _ fs.FileMode) error { return refused("mkdir", name) }

// nowhere is a file that takes every write and keeps nothing.
type nowhere struct{ name string }

func (n nowhere) Name() string                           { return n.name }
func (n nowhere) Read([]byte) (int, error)               { return 0, refused("read", n.name) }
func (n nowhere) ReadAt([]byte, int64) (int, error)      { return 0, refused("read", n.name) }
func (n nowhere) Write(p []byte) (int, error)            { return len(p), nil }
func (n nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (n nowhere) Truncate(int64) error                   { return nil }
func (n nowhere) Sync() error                            { return nil }
func (n nowhere) StartSync() error                       { return nil }
func (n nowhere) Close() error                           { return nil }
func (n nowhere) Stat() (fs.FileInfo, error)             { return nowhereInfo(n), nil }

// nowhereInfo describes it: an empty regular file.
type nowhereInfo struct{ name string }

func (i nowhereInfo) Name() string     { return i.name }
func (nowhereInfo) Size() int64        { return 0 }
func (nowhereInfo) Mode() fs.FileMode  { return 0o600 }
func (nowhereInfo) ModTime() time.Time { return time.Time{} }
func (nowhereInfo) IsDir() bool        { return false }
func (nowhereInfo) Sys() any           { return nil }
