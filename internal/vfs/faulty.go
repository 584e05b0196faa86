package vfs

import (
	"errors"
	"io/fs"
	"sync"
)

// Kind names an operation of FS or File.
type Kind string

// The kinds of operations, one for each method that reaches the disk.
const (
	OpOpen      Kind = "open"
	OpRename    Kind = "rename"
	OpRemove    Kind = "remove"
	OpMkdir     Kind = "mkdir"
	OpReadDir   Kind = "readdir"
	OpStat      Kind = "stat"
	OpSyncDir   Kind = "syncdir"
	OpRead      Kind = "read"
	OpWrite     Kind = "write"
	OpSync      Kind = "sync"
	OpStartSync Kind = "startsync"
	OpTruncate  Kind = "truncate"
	OpClose     Kind = "close"
)

// Op is one operation about to be done.
type Op struct {
	N    int // operations before this one on the same Faulty
	Kind Kind
	Path string // for a rename the old name
	To   string // new name of a rename
	Flag int    // os.O_* flags of an open
	Size int    // bytes of a read or write
}

// ShortWrite, returned for a write, lets the first N bytes reach the file before the write fails
// with Err. Any other error fails an operation before it has done anything.
type ShortWrite struct {
	N   int
	Err error
}

func (e *ShortWrite) Error() string { return "short write: " + e.Err.Error() }
func (e *ShortWrite) Unwrap() error { return e.Err }

// Faulty is an FS that asks a function before every operation whether it should fail.
type Faulty struct {
	fs   FS
	hook func(Op) error

	mu sync.Mutex // one question at a time, so that the hook needs no lock
	n  int
}

// NewFaulty wraps fsys. hook is called before each operation, never at the same time as itself; a
// nil error lets the operation through. A close that is told to fail still closes the file, as
// close(2) does.
func NewFaulty(fsys FS, hook func(Op) error) *Faulty { return &Faulty{fs: fsys, hook: hook} }

// Count returns how many operations have been asked for.
func (f *Faulty) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

func (f *Faulty) ask(op Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	op.N = f.n
	f.n++
	return f.hook(op)
}

func (f *Faulty) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if err := f.ask(Op{Kind: OpOpen, Path: name, Flag: flag}); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	file, err := f.fs.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultyFile{File: file, fs: f}, nil
}

func (f *Faulty) Rename(oldName, newName string) error {
	if err := f.ask(Op{Kind: OpRename, Path: oldName, To: newName}); err != nil {
		return &fs.PathError{Op: "rename", Path: oldName, Err: err}
	}
	return f.fs.Rename(oldName, newName)
}

func (f *Faulty) Remove(name string) error {
	if err := f.ask(Op{Kind: OpRemove, Path: name}); err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return f.fs.Remove(name)
}

func (f *Faulty) Mkdir(name string, perm fs.FileMode) error {
	if err := f.ask(Op{Kind: OpMkdir, Path: name}); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return f.fs.Mkdir(name, perm)
}

func (f *Faulty) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.ask(Op{Kind: OpMkdir, Path: name}); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return f.fs.MkdirAll(name, perm)
}

func (f *Faulty) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.ask(Op{Kind: OpReadDir, Path: name}); err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return f.fs.ReadDir(name)
}

func (f *Faulty) Stat(name string) (fs.FileInfo, error) {
	if err := f.ask(Op{Kind: OpStat, Path: name}); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return f.fs.Stat(name)
}

func (f *Faulty) SyncDir(name string) error {
	if err := f.ask(Op{Kind: OpSyncDir, Path: name}); err != nil {
		return &fs.PathError{Op: "syncdir", Path: name, Err: err}
	}
	return f.fs.SyncDir(name)
}

type faultyFile struct {
	File
	fs *Faulty
}

func (f *faultyFile) ask(kind Kind, size int) error {
	if err := f.fs.ask(Op{Kind: kind, Path: f.Name(), Size: size}); err != nil {
		return &fs.PathError{Op: string(kind), Path: f.Name(), Err: err}
	}
	return nil
}

func (f *faultyFile) Read(b []byte) (int, error) {
	if err := f.ask(OpRead, len(b)); err != nil {
		return 0, err
	}
	return f.File.Read(b)
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.ask(OpRead, len(b)); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *faultyFile) Write(b []byte) (int, error) {
	return f.write(b, f.File.Write)
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	return f.write(b, func(b []byte) (int, error) { return f.File.WriteAt(b, off) })
}

func (f *faultyFile) write(b []byte, write func([]byte) (int, error)) (int, error) {
	err := f.ask(OpWrite, len(b))
	if err == nil {
		return write(b)
	}
	var short *ShortWrite
	if !errors.As(err, &short) {
		return 0, err
	}
	n, werr := write(b[:min(max(short.N, 0), len(b))])
	if werr != nil {
		return n, werr
	}
	return n, err
}

func (f *faultyFile) Stat() (fs.FileInfo, error) {
	if err := f.ask(OpStat, 0); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.ask(OpTruncate, 0); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *faultyFile) Sync() error {
	if err := f.ask(OpSync, 0); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultyFile) StartSync() error {
	if err := f.ask(OpStartSync, 0); err != nil {
		return err
	}
	return f.File.StartSync()
}

func (f *faultyFile) Close() error {
	err := f.ask(OpClose, 0)
	return errors.Join(err, f.File.Close())
}
