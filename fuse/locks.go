package fuse

import (
	"errors"
	"math"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// LockKind is what a lock request asks for.
type LockKind int

// Kinds of a lock request.
const (
	Unlock LockKind = iota
	SharedLock
	ExclusiveLock
)

// Lock is a change of the locks that an owner has on the bytes from Start to End of a file, both included. End
// math.MaxUint64 is the end of the file, however large.
type Lock struct {
	Path       string // "": the file has no name any more
	Owner      uint64 // a process for POSIX locks, an open file description for OFD locks
	Kind       LockKind
	Start, End uint64
	Wait       bool // until it is to be had; Lock may return EAGAIN all the same, and is asked again

	// Cancel is closed when who asks is interrupted; Over when the mount ends.
	Cancel, Over <-chan struct{}
}

// Locker is told of the locks on a mount that forwards them.
type Locker interface {
	// Lock carries out l by take, which asks the kernel and never waits: nil, or EAGAIN when somebody else has the lock.
	// It may wait before it does, until l.Cancel or l.Over is closed at the latest, and may refuse.
	Lock(l Lock, take func() error) error
	// LockFile reports whether path is a virtual file that is there to be locked, and the path of the file whose owner and
	// mode it has. Locks on it are the Locker's alone: take says yes to all. It is in no listing.
	LockFile(path string) (like string, ok bool)
	// Dropped is called after everything that an owner had on a file was let go, as it is when a descriptor is closed.
	Dropped(path string, owner uint64)
}

// forwarded are the locks on a mount that has the kernel ask for each of them. The one table of who holds what is the
// kernel's, of the files behind the mount: each owner of locks on a file has a descriptor of that file here, and its
// locks are the open-file-description locks of that descriptor. So who takes part without the mount, as this process
// does, opens the same file behind it, and a lock goes when this process does.
type forwarded struct {
	locker Locker
	open   func(file locked) (int, error)
	root   int             // of the first mount, through which open goes; -1: the files behind
	over   <-chan struct{} // closed when the connection has ended

	mu     sync.Mutex
	owners map[lockOwner]*ownerLocks
	freed  chan struct{} // closed at the next lock that is let go through the mount
}

type lockOwner struct{ node, owner uint64 }

// ownerLocks is the descriptor that stands for an owner on a file.
type ownerLocks struct {
	fd int // -1: the file is virtual
	// handles that the owner has taken locks through. POSIX locks end with a FLUSH of their owner, which comes at any
	// close; OFD locks end with the release of their handle, and nothing else tells of it.
	handles map[uint64]struct{}
	using   int  // requests that use fd now
	dropped bool // fd is closed when using is 0
}

func newForwarded(locker Locker, over <-chan struct{}) *forwarded {
	return &forwarded{locker: locker, open: openBehind, root: -1, over: over, owners: make(map[lockOwner]*ownerLocks), freed: make(chan struct{})}
}

// locked is the file of a request about locks.
type locked struct {
	id   uint64
	path string
	node *node // nil: virtual
}

// use returns what stands for an owner on a file until done is called.
func (f *forwarded) use(file locked, owner, fh uint64) (*ownerLocks, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := lockOwner{file.id, owner}
	o := f.owners[key]
	if o == nil {
		fd, err := -1, error(nil)
		if file.node != nil {
			fd, err = f.open(file)
		}
		if err != nil {
			return nil, err
		}
		o = &ownerLocks{fd: fd, handles: make(map[uint64]struct{})}
		f.owners[key] = o
	}
	o.handles[fh] = struct{}{}
	o.using++
	return o, nil
}

// openBehind opens the file behind the mount. The kernel has checked already that the caller may take the lock.
func openBehind(file locked) (int, error) {
	return openForLocks(func(flags int) (int, error) { return unix.Open(procPath(file.node.fd), flags, 0) })
}

func openForLocks(open func(flags int) (int, error)) (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NOCTTY
	fd, err := open(unix.O_RDWR | flags)
	if errors.Is(err, syscall.EACCES) { // a reader's: it takes shared locks
		fd, err = open(unix.O_RDONLY | flags)
	}
	return fd, err
}

func (f *forwarded) done(o *ownerLocks) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o.using--
	o.closeUnused()
}

// closeUnused closes the descriptor of an owner that was dropped. forwarded.mu is held.
func (o *ownerLocks) closeUnused() {
	if o.dropped && o.using == 0 && o.fd >= 0 {
		unix.Close(o.fd)
	}
}

// drop lets go of everything an owner has on a file.
func (f *forwarded) drop(file locked, owner uint64) {
	f.mu.Lock()
	key := lockOwner{file.id, owner}
	o := f.owners[key]
	if o != nil {
		f.dropLocked(key, o)
	}
	f.mu.Unlock()
	if o != nil {
		f.locker.Dropped(file.path, owner)
	}
}

func (f *forwarded) dropLocked(key lockOwner, o *ownerLocks) {
	delete(f.owners, key)
	// Not left to close: a request that waits for a lock of this owner has the descriptor.
	if whole := (unix.Flock_t{Type: unix.F_UNLCK}); o.fd >= 0 {
		_ = unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &whole) // cannot fail: the file is open, and to unlock is allowed
	}
	o.dropped = true
	o.closeUnused()
	f.wakeLocked()
}

// released drops the owners that took their locks through a handle and no other.
func (f *forwarded) released(file locked, fh uint64) {
	f.mu.Lock()
	var gone []uint64
	for key, o := range f.owners {
		if _, ok := o.handles[fh]; !ok || key.node != file.id {
			continue
		}
		delete(o.handles, fh)
		if len(o.handles) == 0 {
			f.dropLocked(key, o)
			gone = append(gone, key.owner)
		}
	}
	f.mu.Unlock()
	for _, owner := range gone {
		f.locker.Dropped(file.path, owner)
	}
}

func (f *forwarded) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, o := range f.owners {
		f.dropLocked(key, o)
	}
	if f.root >= 0 {
		unix.Close(f.root)
		f.root = -1
	}
}

func (f *forwarded) wakeLocked() {
	close(f.freed)
	f.freed = make(chan struct{})
}

// lookAgain is how long a blocking request waits at most until it tries again: nothing tells of a lock that was let go
// otherwise than through the mount.
const lookAgain = 20 * time.Millisecond

// set carries out a request for a lock.
func (f *forwarded) set(file locked, in *gofuse.LkIn, cancel <-chan struct{}, wait bool) error {
	kind, fl := LockKind(Unlock), flockOf(&in.Lk)
	switch in.Lk.Typ {
	case unix.F_RDLCK:
		kind = SharedLock
	case unix.F_WRLCK:
		kind = ExclusiveLock
	case unix.F_UNLCK:
	default:
		return syscall.EINVAL
	}
	o, err := f.use(file, in.Owner, in.Fh)
	if err != nil {
		return err
	}
	defer f.done(o)
	take := func() error {
		if o.fd < 0 {
			return nil
		}
		lk := fl
		err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &lk)
		if errors.Is(err, syscall.EACCES) {
			err = syscall.EAGAIN
		}
		return err
	}
	l := Lock{Path: file.path, Owner: in.Owner, Kind: kind, Start: in.Lk.Start, End: in.Lk.End, Wait: wait, Cancel: cancel, Over: f.over}
	for {
		f.mu.Lock()
		freed, dropped := f.freed, o.dropped
		f.mu.Unlock()
		if dropped {
			return syscall.EINTR // another thread has closed the file meanwhile
		}
		err := f.locker.Lock(l, take)
		if err == nil && kind != ExclusiveLock { // let go, or shared with others now
			f.mu.Lock()
			f.wakeLocked()
			f.mu.Unlock()
		}
		if !wait || !errors.Is(err, syscall.EAGAIN) {
			return err
		}
		timer := time.NewTimer(lookAgain)
		select {
		case <-freed:
		case <-timer.C:
		case <-cancel:
			err = syscall.EINTR
		case <-f.over:
			err = syscall.EINTR
		}
		timer.Stop()
		if errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// get says who would be in the way of a lock.
func (f *forwarded) get(file locked, in *gofuse.LkIn, out *gofuse.LkOut) error {
	o, err := f.use(file, in.Owner, in.Fh)
	if err != nil {
		return err
	}
	defer f.done(o)
	fl := flockOf(&in.Lk)
	if o.fd < 0 {
		return syscall.ENOSYS // as LiteFS 0.5
	}
	if err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_GETLK, &fl); err != nil {
		return err
	}
	out.Lk = gofuse.FileLock{Typ: uint32(fl.Type), Start: uint64(fl.Start), End: uint64(fl.Start + fl.Len - 1)}
	if fl.Len == 0 {
		out.Lk.End = math.MaxInt64
	}
	return nil
}

// flockOf is a range as fcntl(2) has it.
func flockOf(l *gofuse.FileLock) unix.Flock_t {
	fl := unix.Flock_t{Type: int16(l.Typ), Start: int64(l.Start)}
	if l.End < math.MaxInt64 {
		fl.Len = int64(l.End-l.Start) + 1
	}
	return fl
}

// lockable returns the file of a handle.
func (fs *loopback) lockable(node, fh uint64) (file locked, err error) {
	if fs.locks == nil {
		return file, syscall.ENOSYS
	}
	h, err := fs.handle(node, fh)
	switch {
	case err != nil:
		return file, err
	case h.node != nil:
		return locked{h.node.id, fs.pathOrNone(h.node), h.node}, nil
	case h.lockFile == "":
		return file, syscall.EBADF
	}
	return locked{node, h.lockFile, nil}, nil
}

// GetLk implements the kernel's F_GETLK.
func (fs *loopback) GetLk(_ <-chan struct{}, in *gofuse.LkIn, out *gofuse.LkOut) gofuse.Status {
	file, err := fs.lockable(in.NodeId, in.Fh)
	if err != nil {
		return status(err)
	}
	return status(fs.locks.get(file, in, out))
}

// SetLk implements F_SETLK and F_OFD_SETLK, which differ in who the owner is.
func (fs *loopback) SetLk(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return fs.setLock(cancel, in, false)
}

// SetLkw implements F_SETLKW and F_OFD_SETLKW.
func (fs *loopback) SetLkw(cancel <-chan struct{}, in *gofuse.LkIn) gofuse.Status {
	return fs.setLock(cancel, in, true)
}

func (fs *loopback) setLock(cancel <-chan struct{}, in *gofuse.LkIn, wait bool) gofuse.Status {
	file, err := fs.lockable(in.NodeId, in.Fh)
	if err != nil {
		return status(err)
	}
	return fs.refused("lock", file.path, fs.locks.set(file, in, cancel, wait))
}

// Flush drops the POSIX locks of who closes a descriptor of the file, as close(2) does. On a mount whose locks the kernel
// keeps every open says NOFLUSH, so it is not asked for; ENOSYS would be remembered by the kernel.
func (fs *loopback) Flush(_ <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	if fs.locks == nil {
		return gofuse.ENOSYS
	}
	if file, err := fs.lockable(in.NodeId, in.Fh); err == nil {
		fs.locks.drop(file, in.LockOwner)
	}
	return gofuse.OK
}

// lockFile reports whether the virtual file at path is there to be locked.
func (fs *loopback) lockFile(path string) (like string, ok bool) {
	if fs.locks == nil {
		return "", false
	}
	return fs.locks.locker.LockFile(path)
}
