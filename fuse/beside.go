package fuse

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file shows the same files at a second mount point, beside a session that is Shared. To the kernel the two are file
// systems that have nothing to do with each other: each has names, attributes, pages and record locks of its own. So
//
//   - the nodes are those of both: one mode an inode, and the Backend hears of its first open and its last close on
//     either, in order (node.opens, node.order, loopback.naming);
//   - neither keeps names or attributes: the kernel asks each time;
//   - no page is in either's cache: what is not Passthrough is Direct, and cannot be mapped to be shared. Passthrough
//     reads, writes and maps the pages of the one file behind, and without it there is no second mount;
//   - the locks of both are in the kernel's table of the first, where programs there take them without a request: those
//     of the second are taken on descriptors that are opened through the first (forwarded).
//
// The second ends before the first. It keeps the first one's root open, so that umount(8) finds that one busy.

// checkShared refuses what two mounts of the same files cannot have.
func (o *Options) checkShared() error {
	if o.Beside == nil && !o.Shared {
		return nil
	}
	switch {
	case o.Keeper != nil || o.Inherited != nil:
		return errors.New("mount: of two mounts of the same files none can be taken over: Keeper excludes Shared and Beside")
	case o.Beside == nil && o.Locker != nil:
		return errors.New("mount: a Shared session's locks are the kernel's: it has no Locker")
	case o.Beside == nil:
		return nil
	case !o.Beside.opt.Shared || o.Locker == nil:
		return errors.New("mount: Beside has to be a Shared session, and a session beside it needs a Locker")
	}
	o.Root, o.Shared = o.Beside.opt.Root, true
	return nil
}

// openTable is the table of nodes, closeTable its end: that of the first mount is both's.
func (s *Session) openTable() (*table, error) {
	if s.opt.Beside != nil {
		return s.opt.Beside.fs.nodes, nil
	}
	return newTable(s.opt.Root)
}

func (s *Session) closeTable(t *table) {
	if s.opt.Beside == nil {
		t.closeAll()
	}
}

// sitBeside makes fs one that shows what first does.
func (fs *loopback) sitBeside(first *loopback) {
	fs.seat, fs.naming, fs.looked = 1, first.naming, &lookups{of: make(map[uint64]uint64)}
}

// lookups are those of the second mount's kernel, which does not say at its end that it has forgotten them.
type lookups struct {
	mu sync.Mutex
	of map[uint64]uint64 // by node
}

// lookup is table.lookup for the kernel of this mount.
func (fs *loopback) lookup(dir *node, name string) (*node, unix.Stat_t, error) {
	n, st, err := fs.nodes.lookup(dir, name)
	if l := fs.looked; l != nil && err == nil {
		l.mu.Lock()
		l.of[n.id]++
		l.mu.Unlock()
	}
	return n, st, err
}

// forget is table.forget for the kernel of this mount.
func (fs *loopback) forget(id, count uint64) {
	if l := fs.looked; l != nil {
		l.mu.Lock()
		if l.of[id] -= min(count, l.of[id]); l.of[id] == 0 {
			delete(l.of, id)
		}
		l.mu.Unlock()
	}
	fs.nodes.forget(id, count)
}

// leave closes what is still open on the second mount, and forgets what its kernel knew. The loop has ended.
func (fs *loopback) leave() {
	fs.over = true
	fs.handles.RLock()
	open := slices.Collect(maps.Values(fs.handles.open))
	fs.handles.RUnlock()
	for _, h := range open {
		if h.dir != nil {
			fs.removeHandle(h.fh).close()
		} else {
			fs.release(h.fh)
		}
	}
	for id, count := range maps.Clone(fs.looked.of) {
		fs.forget(id, count)
	}
}

// validity is how long the kernel may keep names and attributes.
func (fs *loopback) validity() time.Duration {
	if fs.shared {
		return 0
	}
	return validity
}

// lockThrough has the locks of the second mount taken on the files of the first.
func (f *forwarded) lockThrough(dir string) error {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the first mount: %w", err)
	}
	f.root = root
	f.open = func(file locked) (int, error) {
		if file.path == "" {
			return -1, unix.ENOLCK // to be had through this mount alone. SQLite says SQLITE_BUSY
		}
		fd, err := openForLocks(func(flags int) (int, error) {
			return unix.Openat2(root, filepath.Clean(file.path), &unix.OpenHow{
				Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
			})
		})
		if errors.Is(err, unix.ENOENT) {
			return -1, unix.ENOLCK
		}
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Ino != file.id { // it has just been moved
			err = unix.ENOLCK
		}
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	return nil
}
