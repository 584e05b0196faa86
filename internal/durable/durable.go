// Package durable makes files that a power cut leaves whole: the old content or the new one, and nothing
// between.
//
// A file is made so: its content is written under another name in its directory and synced, the file gets
// the name that it is for in one step, and the directory is synced. Without the first sync the name can
// come to the disk before the content, and without the second one a caller that was told of success can
// find the old file after the cut. What fails leaves the old file, and none under the other name; only
// when the last step fails the new file has its name, and may lose it in a power cut.
//
// Replace is for a few bytes; Put for content that comes as a stream, and for a name that is not given by
// a rename. Write does without the other name. Where only names change (a removal, a rename)
// SyncDir of package vfs is all that is needed.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/vfs"
)

// tempSuffix makes the other name of a file that is replaced. It is always the same one, so that what a crash
// has left of a file is overwritten when that is replaced the next time.
const tempSuffix = ".tmp"

// Replace makes b the content of the file at path, as a whole. Only one may do so at a time.
func Replace(fsys vfs.FS, path string, b []byte) error {
	tmp := path + tempSuffix
	f, err := create(fsys, tmp)
	if err != nil {
		return err
	}
	if err = fill(f, b); err == nil {
		err = fsys.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// Write makes b the content of the file at path, in place: a power cut may leave any part of it, and so may
// an error. It is for a file that nobody relies on before Write has returned.
func Write(fsys vfs.FS, path string, b []byte) error {
	f, err := create(fsys, path)
	if err != nil {
		return err
	}
	if err := fill(f, b); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

func create(fsys vfs.FS, path string) (vfs.File, error) {
	return fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

// fill writes the content of a file, syncs it, and closes the file.
func fill(f vfs.File, b []byte) error {
	_, err := f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Put makes the file at path, on the real disk. It is made, for its owner alone, under a name beside path that
// os.CreateTemp makes of pattern; write gives it its content (and other modes), and publish the name path:
// os.Rename replaces the file there, Link does not. When publish returns nil, the first name is gone.
func Put(path, pattern string, write func(f *os.File) error, publish func(tmp, path string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return err
	}
	tmp := f.Name()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = publish(tmp, path)
	}
	if err != nil {
		if rerr := os.Remove(tmp); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	return vfs.OS().SyncDir(dir)
}

// Link gives the file at tmp the name path instead of its own. fs.ErrExist: there is a file at path, which stays.
func Link(tmp, path string) error {
	if err := os.Link(tmp, path); err != nil {
		return err
	}
	return os.Remove(tmp)
}
