package peer

import (
	"errors"
	"io"
	"os"
)

// file is one of the three files of a database. What changes its content goes
// through here, so that a test can fail or cut off the i-th change.
type file struct {
	*os.File
	before func(c change) error // nil outside tests
}

// change is something that is about to be done to a file.
type change struct {
	op string // "write", "truncate", "sync" or "remove"
	f  *os.File
	b  []byte // of a write
	at int64  // of a write
}

func (p *Peer) openFile(name string, flag int, perm os.FileMode) (*file, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &file{File: f, before: p.opt.before}, nil
}

func (f *file) announce(c change) error {
	if f.before == nil {
		return nil
	}
	c.f = f.File
	return f.before(c)
}

// WriteAt is os.File's.
func (f *file) WriteAt(b []byte, at int64) (int, error) {
	if err := f.announce(change{op: "write", b: b, at: at}); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, at)
}

// Truncate is os.File's.
func (f *file) Truncate(size int64) error {
	if err := f.announce(change{op: "truncate"}); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Sync is os.File's.
func (f *file) Sync() error {
	if err := f.announce(change{op: "sync"}); err != nil {
		return err
	}
	return f.File.Sync()
}

// remove unlinks the file.
func (f *file) remove() error {
	if err := f.announce(change{op: "remove"}); err != nil {
		return err
	}
	return os.Remove(f.Name())
}

// readAtMost reads into b what there is of it at the offset.
func readAtMost(r io.ReaderAt, b []byte, at int64) (int, error) {
	n, err := r.ReadAt(b, at)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
