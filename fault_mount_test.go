package litefs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/fuse"
	"github.com/litefs/litefs/internal/vfs"
)

// backend lets the kernel ask a store, as the daemon does.
type backend struct{ store *Store }

func (b backend) own(c fuse.Caller) bool { return b.store.Role() == RoleReplica && c.Own() }

func (b backend) Opening(c fuse.Caller, path string, flags uint32, first bool) (fuse.Mode, error) {
	mode, err := b.store.Opening(b.own(c), path, flags&unix.O_ACCMODE != unix.O_RDONLY, first)
	if err != nil {
		return fuse.Cached, err
	}
	switch mode {
	case IOPassthrough:
		return fuse.Passthrough, nil
	case IODirect:
		return fuse.Direct, nil
	}
	return fuse.Cached, nil
}
func (b backend) Creating(c fuse.Caller, path string) error {
	return b.store.Creating(b.own(c), path)
}
func (b backend) Opened(path string, mode fuse.Mode, writable, _ bool) {
	if mode == fuse.Direct {
		b.store.OpenedDirect(path)
	}
	b.store.Opened(path, mode == fuse.Passthrough, writable)
}
func (b backend) Released(path string, writable, last bool) { b.store.Released(path, writable, last) }
func (b backend) Writing(c fuse.Caller, path string, off int64, data []byte) error {
	err := b.store.Writing(b.own(c), path, off, data)
	if errors.Is(err, ErrTaken) {
		return fuse.ErrTaken
	}
	return err
}
func (b backend) Wrote(path string, off int64, n int) { b.store.Wrote(path, off, n) }
func (b backend) Syncing(c fuse.Caller, path string) fuse.Sync {
	switch b.store.Syncing(b.own(c), path) {
	case SyncData:
		return fuse.SyncData
	case SyncBehind:
		return fuse.SyncBehind
	}
	return fuse.SyncAll
}
func (b backend) Truncating(c fuse.Caller, path string, size int64) error {
	return b.store.Truncating(b.own(c), path, size)
}
func (b backend) Unlinking(c fuse.Caller, path string) error {
	return b.store.Unlinking(b.own(c), path)
}
func (b backend) Unlinked(path string, err error) { b.store.Unlinked(path, err) }
func (b backend) Renaming(c fuse.Caller, oldPath, newPath string) error {
	return b.store.Renaming(b.own(c), oldPath, newPath)
}
func (b backend) Renamed(oldPath, newPath string, err error) { b.store.Renamed(oldPath, newPath, err) }
func (b backend) Virtual(path string) ([]byte, bool)         { return b.store.Virtual(path) }
func (b backend) Virtuals(dir string) []string               { return b.store.Virtuals(dir) }
func (b backend) Volatile(path string) bool                  { return b.store.Volatile(path) }

// mounted is a node whose tree is mounted, on a log whose disk can fail.
type mounted struct {
	*node
	dir   string // mount point
	disk  *disk
	close func() // everything, in the order of a shutdown
}

func mountNode(t *testing.T, dir string, noPassthrough bool, opts ...nodeOption) *mounted {
	t.Helper()
	return mountNodeAs(t, dir, noPassthrough, func(s *Store) fuse.Backend { return backend{s} }, opts...)
}

// mountNodeAs is mountNode with a store and a backend of the test's own.
func mountNodeAs(t *testing.T, dir string, noPassthrough bool, as func(*Store) fuse.Backend, opts ...nodeOption) *mounted {
	t.Helper()
	m := &mounted{dir: filepath.Join(t.TempDir(), "mnt"), disk: &disk{}}
	m.node = openNode(t, dir, append(opts, func(s *Store) { s.logFS = vfs.NewFaulty(vfs.OS(), m.disk.op) })...)
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	session, err := fuse.Mount(t.Context(), fuse.Options{
		Dir: m.dir, Root: m.store.FilesDir(), NoPassthrough: noPassthrough,
		Backend: as(m.store), Logger: m.store.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	m.close = func() {
		once.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			m.disk.mend()
			if err := errors.Join(m.store.Unmounting(), session.Close(ctx), m.store.Close()); err != nil {
				t.Errorf("shutdown: %v", err)
			}
			_ = unix.Unmount(m.dir, unix.MNT_DETACH) // a test that failed may have left it
		})
	}
	t.Cleanup(m.close)
	m.store.OnWait(session.Relieve)
	live, _ := session.Passthrough()
	if err := m.store.Mounted(m.dir, live); err != nil {
		t.Fatal(err)
	}
	return m
}

// app is where applications find a database.
func (m *mounted) app(name string) string { return filepath.Join(m.dir, name) }

// disk decides which operations of the logs fail.
type disk struct {
	mu     sync.Mutex
	armed  bool
	after  int  // operations that still succeed
	lasts  bool // every operation fails from then on, not one
	err    error
	failed int
}

// fail lets the operation after n others fail, and with lasts every one after it.
func (d *disk) fail(n int, lasts bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed, d.after, d.lasts, d.err, d.failed = true, n, lasts, err, 0
}

// mend ends the failing and returns how many operations have failed.
func (d *disk) mend() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = false
	return d.failed
}

func (d *disk) op(o vfs.Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.armed {
		return nil
	}
	if d.after > 0 {
		d.after--
		return nil
	}
	d.armed = d.lasts
	d.failed++
	if o.Kind == vfs.OpWrite && o.Size > 1 {
		return &vfs.ShortWrite{N: o.Size / 2, Err: d.err} // a full disk takes a part
	}
	return d.err
}
