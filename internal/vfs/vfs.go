// Package vfs is the door to the disk: the few file operations a durable structure needs, behind an
// interface, so that a test can make any one of them fail or stop the world between two of them.
//
// OS is the real disk. NewFaulty wraps any FS and asks a function before each operation.
package vfs

import (
	"io"
	"io/fs"
	"syscall"
)

// O_DSYNC is a flag of OpenFile: each write returns when it is durable, as far as reading it needs.
const O_DSYNC = syscall.O_DSYNC

// FS is a file system. Names are paths as the os package takes them. Errors are those of the os
// package (*fs.PathError and relatives), so errors.Is works with fs.ErrNotExist and syscall.Errno.
type FS interface {
	// OpenFile opens name with the os.O_* flags given, and perhaps O_DSYNC.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces newName atomically. It is durable only after SyncDir of the directory.
	Rename(oldName, newName string) error
	Remove(name string) error
	Mkdir(name string, perm fs.FileMode) error
	MkdirAll(name string, perm fs.FileMode) error
	// ReadDir returns the entries of a directory sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable: creations, renames and removals before it.
	SyncDir(name string) error
}

// File is an open file.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	Name() string
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	// Sync makes the content durable. After an error the content must be written again: the kernel
	// may have dropped the pages it could not write and report success the next time.
	Sync() error
	// StartSync begins writing the content to the disk without waiting. It promises nothing; it
	// lets the Sync of many small files share a few commits of the file system's journal.
	StartSync() error
}
