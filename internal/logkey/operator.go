package logkey

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/vfs"
)

// recordsName is the directory of the databases' records in a data directory.
const recordsName = "dbs"

// Log is a directory of a data directory in which a log lies, or a copy of one.
type Log struct {
	Dir string
	ID  string // of its database; "" where there is no key
	// Name is the path of its database; "" when no record of this node has it any more.
	Name string
	Key  bool // it has a key
}

// Logs lists those of the databases, those that were set aside, and what was kept in lost+found.
func Logs(data string) ([]Log, error) {
	var logs []Log
	names := map[string]string{} // by id
	for _, group := range []string{recordsName, "aside", "lost+found"} {
		dirs, err := filepath.Glob(filepath.Join(data, group, "*", "ltx"))
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			l := Log{Dir: filepath.Dir(dir)}
			r, err := read(l.Dir)
			if l.Key = err == nil; l.Key {
				l.ID = r.Database
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			name, err := os.ReadFile(filepath.Join(l.Dir, "name"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			if l.Name = strings.TrimRight(string(name), "\n"); l.Name != "" {
				names[l.ID] = l.Name
			}
			logs = append(logs, l)
		}
	}
	for i, l := range logs {
		if l.Key && l.Name == "" {
			logs[i].Name = names[l.ID]
		}
	}
	return logs, nil
}

// WrappedBy returns the id of the operator's key that the key of the logs in dir is wrapped with.
func (k *Keys) WrappedBy(dir string) (string, error) {
	r, err := read(dir)
	if err != nil {
		return "", err
	}
	_, by, err := k.unwrap(dir, r)
	return by, err
}

// Rotate wraps the key of the logs in dir with the first of the operator's keys, durably; false: it was. A node that has them
// open is not disturbed.
func (k *Keys) Rotate(dir string) (bool, error) {
	r, err := read(dir)
	if err != nil {
		return false, err
	}
	d, by, err := k.unwrap(dir, r)
	if err != nil || by == k.Operator.Current() {
		return false, err
	}
	return true, k.put(dir, r.Database, &ltxlog.Sealing{Key: d, PlainUpTo: r.PlainUpTo})
}

// Destroy destroys the key of the logs in dir, durably: nobody can read them any more. Without one there is nothing to do. It is
// written over first, which is all that can be done about what the disk keeps of removed files.
func Destroy(dir string) error {
	path := filepath.Join(dir, Name)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("destroy a key: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, info.Size()), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("destroy a key: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("destroy a key: %w", err)
	}
	return vfs.OS().SyncDir(dir)
}

// Shred destroys the key of a log, and then removes the log: what is of a time in the clear is no more than removed. The record
// of a database stays without its name: the next start of the node sets it aside and begins a new one, under another id,
// with what the database's file has. No node has the log open.
func Shred(l Log) error {
	if err := Destroy(l.Dir); err != nil {
		return err
	}
	if filepath.Base(filepath.Dir(l.Dir)) != recordsName {
		return os.RemoveAll(l.Dir)
	}
	if err := os.Remove(filepath.Join(l.Dir, "name")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give up a record: %w", err)
	}
	return errors.Join(os.RemoveAll(filepath.Join(l.Dir, "ltx")), vfs.OS().SyncDir(l.Dir))
}
