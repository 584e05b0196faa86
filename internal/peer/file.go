package peer

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// file is one of the three files of a database. What changes its content goes
// through here, so that a test can fail or cut off the i-th change.
type file struct {
	*os.File
	suffix  string
	kept    bool                 // the LockKeeper has a copy
	backing *os.File             // the same file outside the mount; nil: none
	behind  bool                 // locks are on backing
	before  func(c change) error // nil outside tests
}

// change is something that is about to be done to a file.
type change struct {
	op string // "write", "truncate", "sync" or "remove"
	f  *os.File
	b  []byte // of a write
	at int64  // of a write
}

// openFile opens the file with the suffix, or goes on with the one on which the
// locks of a process before this one are held.
func (p *Peer) openFile(suffix string, flag int, perm os.FileMode) (*file, error) {
	if f, err := p.keptFile(suffix); f != nil || err != nil {
		return f, err
	}
	of, err := os.OpenFile(p.opt.Path+suffix, flag, perm)
	if err != nil {
		return nil, err
	}
	f := &file{File: of, suffix: suffix, before: p.opt.before}
	if p.opt.Backing != "" {
		f.behind = p.opt.LocksBehind
		if err := f.openBacking(p.opt.Backing + suffix); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// keptFile returns the open file of a process before this one, nil if there is
// none. Of its locks only those stay that a Peer always has: it may have been
// killed in the middle of anything.
func (p *Peer) keptFile(suffix string) (*file, error) {
	if p.opt.Locks == nil {
		return nil, nil
	}
	fd, ok := p.opt.Locks.Kept(suffix)
	if !ok {
		return nil, nil
	}
	f := &file{File: os.NewFile(uintptr(fd), p.opt.Path+suffix), suffix: suffix, kept: true, before: p.opt.before}
	var err error
	if p.opt.Backing != "" {
		err = f.openBacking(p.opt.Backing + suffix)
	}
	if err == nil {
		err = onlyBaseLocks(f)
	}
	if err != nil {
		// The name may have got another file meanwhile.
		p.opt.Logger.Warn("the locks of the process before are let go", "path", p.opt.Path+suffix, "error", err)
		return nil, p.unlockAndClose(f)
	}
	return f, nil
}

func (f *file) openBacking(name string) (err error) {
	flag := os.O_RDONLY
	if f.behind {
		flag = os.O_RDWR // an exclusive lock wants that
	}
	if f.backing, err = os.OpenFile(name, flag, 0); err != nil {
		return err
	}
	var through, behind unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &through), unix.Fstat(int(f.backing.Fd()), &behind)); err != nil {
		return err
	}
	if through.Ino != behind.Ino { // the mount shows the inode numbers of its files
		return fmt.Errorf("%s is not the file behind %s: inode %d, want %d", name, f.Name(), behind.Ino, through.Ino)
	}
	return nil
}

// real is the file outside the mount, if there is a mount. Sizes are asked from
// it and syncs go to it: the mount keeps no write to itself, and a process that
// waits for its own mount when it is killed cannot die.
func (f *file) real() *os.File {
	if f.backing != nil {
		return f.backing
	}
	return f.File
}

// locks is the descriptor on which locks are taken.
func (f *file) locks() *os.File {
	if f.behind {
		return f.backing
	}
	return f.File
}

// Close closes the file.
func (f *file) Close() error {
	if f.backing == nil {
		return f.File.Close()
	}
	return errors.Join(f.backing.Close(), f.File.Close())
}

// Stat is os.File's.
func (f *file) Stat() (os.FileInfo, error) { return f.real().Stat() }

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
	return f.real().Sync()
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
