package fuse

import (
	"context"
	"errors"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is one open(2) of a file, or an open directory.
type handle struct {
	fh       uint64 // number << 4 | flags (fhXxx), so that a handle of an earlier daemon still says how it was opened
	slot     uint32 // in the estate
	node     *node  // nil: virtual
	fd       int    // -1: virtual
	writable bool
	content  []byte     // of a virtual file
	lockFile string     // path of a virtual file that is there to be locked
	virtual  uint64     // its nodeid
	dir      *dirStream // of a directory
}

func (h *handle) close() {
	if h.fd >= 0 {
		unix.Close(h.fd)
	}
}

// The low bits of a handle's number.
const (
	fhAccess = unix.O_ACCMODE // two bits
	fhSync   = 1 << 2
	fhDsync  = 1 << 3
	fhFlags  = 4 // bits
)

// openFlags are the flags of open(2) that a handle's number tells.
func openFlags(fh uint64) int {
	flags := int(fh) & fhAccess
	if fh&fhSync != 0 {
		flags |= unix.O_SYNC
	}
	if fh&fhDsync != 0 {
		flags |= unix.O_DSYNC
	}
	return flags
}

func handleNumber(n uint64, flags uint32) uint64 {
	fh := n<<fhFlags | uint64(flags&unix.O_ACCMODE)
	if flags&unix.O_SYNC == unix.O_SYNC {
		fh |= fhSync
	}
	if flags&unix.O_DSYNC != 0 {
		fh |= fhDsync
	}
	return fh
}

func (fs *loopback) addHandle(h *handle, flags uint32) {
	fs.handles.Lock()
	defer fs.handles.Unlock()
	fs.handles.last++
	h.fh = handleNumber(fs.handles.last, flags)
	h.slot = noSlot
	fs.handles.open[h.fh] = h
}

// handle returns an open handle. The kernel may name one of a directory or a virtual file that a session before this one
// gave out: it is opened again.
func (fs *loopback) handle(node, fh uint64) (*handle, error) {
	fs.handles.RLock()
	h := fs.handles.open[fh]
	fs.handles.RUnlock()
	if h != nil {
		return h, nil
	}
	if fs.nodes.inherited {
		return fs.reopen(node, fh)
	}
	return nil, syscall.EBADF
}

func (fs *loopback) removeHandle(fh uint64) *handle {
	fs.handles.Lock()
	defer fs.handles.Unlock()
	h := fs.handles.open[fh]
	delete(fs.handles.open, fh)
	if len(fs.handles.open) == 0 {
		select {
		case fs.handles.none <- struct{}{}:
		default:
		}
	}
	return h
}

// releasePatience is how long an unmount waits for handles that no process may have any more.
const releasePatience = 2 * time.Second

// awaitReleases waits until every handle has been released, for a while: the kernel tells of a close(2) after it has
// returned, and an unmount drops what it has not told yet. What was written before such a close would be found, by
// comparing every page, at the next start only.
func (fs *loopback) awaitReleases(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, releasePatience)
	defer cancel()
	for {
		fs.handles.RLock()
		open := len(fs.handles.open)
		fs.handles.RUnlock()
		if open == 0 {
			return
		}
		select {
		case <-fs.handles.none:
		case <-ctx.Done():
			return
		}
	}
}

// backingFlags are the flags of open(2) that our own descriptor of the file takes over. O_APPEND is not among them, for
// the kernel sends offsets and pwrite(2) would ignore them; nor O_DIRECT, for which our buffers are not aligned;
// O_TRUNC is a request of its own (SETATTR).
const backingFlags = unix.O_ACCMODE | unix.O_SYNC | unix.O_DSYNC

func isWritable(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

// Open opens an existing file.
func (fs *loopback) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if isVirtual(in.NodeId) {
		return fs.openVirtual(in, out)
	}
	n, err := fs.nodes.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	if n.kind != unix.S_IFREG {
		return gofuse.EACCES // nothing else is opened through the daemon
	}
	return fs.open(n, in.InHeader, in.Flags, false, out)
}

// open asks the Backend and opens n.
func (fs *loopback) open(n *node, in gofuse.InHeader, flags uint32, created bool, out *gofuse.OpenOut) gofuse.Status {
	fs.undoUnanswered(in.Unique)
	c := Caller{in.Pid}
	asked := Cached
	askedFirst := false
	for {
		n.mu.Lock()
		first := n.opens == 0
		n.mu.Unlock()
		// No lock is held: Opening may wait for something that opens or closes this very file.
		path, named := fs.nodes.pathOf(n)
		if named {
			mode, err := fs.backend.Opening(c, path, flags, first)
			if err != nil {
				return fs.refused("open", path, err)
			}
			asked = mode
		}
		askedFirst = first || !named
		code, again := fs.openAs(n, in, flags, created, asked, askedFirst, out)
		if !again {
			return code
		}
	}
}

// openAs opens n in the mode in force, or in the mode asked for if no handle is open. again: the last handle was closed
// since the Backend was told that there is one, so the mode has not been asked for.
func (fs *loopback) openAs(n *node, in gofuse.InHeader, flags uint32, created bool, asked Mode, askedFirst bool, out *gofuse.OpenOut) (code gofuse.Status, again bool) {
	// A thread of this process may hold a lock that a Released in progress waits for.
	own := (Caller{in.Pid}).Own()
	if !own {
		defer fs.inOrder(n)()
	}
	h := &handle{node: n, fd: -1, writable: isWritable(flags)}
	if code, again = fs.openBacked(n, h, own, in.Unique, flags, asked, askedFirst, out); !code.Ok() || again {
		return code, again
	}
	fs.backend.Opened(fs.pathOrNone(n), fs.modeOf(n), h.writable, created)
	return gofuse.OK, false
}

// modeOf is the mode in force.
func (fs *loopback) modeOf(n *node) Mode {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mode
}

// pathOrNone is "" for a file without a name.
func (fs *loopback) pathOrNone(n *node) string {
	path, named := fs.nodes.pathOf(n)
	if !named {
		return ""
	}
	return path
}

// openBacked is openAs without the Backend.
func (fs *loopback) openBacked(n *node, h *handle, own bool, unique uint64, flags uint32, asked Mode, askedFirst bool, out *gofuse.OpenOut) (code gofuse.Status, again bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.opens == 0 && !askedFirst {
		return gofuse.OK, true
	}
	fd, err := unix.Open(procPath(n.fd), int(flags&backingFlags)|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return status(err), false
	}
	if !fs.nodes.hold(n) {
		unix.Close(fd)
		return status(syscall.ESTALE), false
	}
	h.fd = fd
	if n.opens == 0 {
		n.mode = fs.begin(n, fd, asked)
	} else if n.mode == Passthrough && n.seats[fs.seat].backing == 0 {
		// Open on the other mount alone; or the session before was cut off between the last close and the end of its record.
		if n.mode = fs.begin(n, fd, Passthrough); n.mode != Passthrough {
			fs.nodes.letGo(n)
			unix.Close(fd)
			return status(syscall.EIO), false
		}
	}
	n.opens++
	n.seats[fs.seat].opens++
	fs.addHandle(h, flags)
	if h.slot, err = fs.estate.opened(unique, h.fh, n.id, n.mode, n.seats[fs.seat].backing, n.sized); err != nil {
		fs.removeHandle(h.fh)
		fs.closeOne(n, h)
		fs.nodes.letGo(n)
		return fs.refused("open", fs.pathOrNone(n), err), false
	}
	out.Fh = h.fh
	// NOFLUSH: close(2) has nothing to ask, where the kernel keeps the locks. Most of all when this process is killed: the
	// descriptors it holds on its own mount would wait for an answer that nobody is left to give. It takes no POSIX locks.
	if fs.locks == nil || own {
		out.OpenFlags = gofuse.FOPEN_NOFLUSH
	}
	switch n.mode {
	case Passthrough: // KEEP_CACHE with it would be EIO
		out.OpenFlags |= gofuse.FOPEN_PASSTHROUGH
		out.BackingID = n.seats[fs.seat].backing
	case Direct:
		out.OpenFlags |= gofuse.FOPEN_DIRECT_IO
	default:
		out.OpenFlags |= gofuse.FOPEN_KEEP_CACHE
	}
	return gofuse.OK, false
}

// begin decides the mode of an inode at its first open. n.mu is held, and nothing else: a registration waits for the
// kernel.
func (fs *loopback) begin(n *node, fd int, asked Mode) Mode {
	if asked != Passthrough || !fs.passthrough() || n.refused {
		if asked == Direct || fs.shared {
			return Direct
		}
		return Cached
	}
	id, err := fs.dev.openBacking(fd)
	if err != nil {
		n.refused = true
		path, _ := fs.nodes.pathOf(n)
		if fs.shared {
			fs.logger.Warn("the kernel refused passthrough for a file; each read and write of it is a request", "path", path, "err", err)
			return Direct
		}
		fs.logger.Warn("the kernel refused passthrough for a file; it is served cached", "path", path, "err", err)
		return Cached
	}
	fs.estate.registered(id)
	n.seats[fs.seat].backing = id
	return Passthrough
}

// Create makes a file and opens it. If it was made behind the kernel's back meanwhile, it is opened as it is.
func (fs *loopback) Create(_ <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	dir, err := fs.directory(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	c := Caller{in.Pid}
	path, named := fs.nodes.childPath(dir, name)
	if _, virtual := fs.virtualContent(path, named); virtual {
		return gofuse.EPERM
	}
	if named {
		if err := fs.backend.Creating(c, path); err != nil {
			return fs.refused("create", path, err)
		}
	}
	fd, err := unix.Openat(dir.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		defer unix.Close(fd)
	case errors.Is(err, syscall.EEXIST) && isResent(in.Unique):
		// Made by the daemon before, which was cut off: the kernel, which keeps the directory locked, has seen no file.
	case errors.Is(err, syscall.EEXIST) && in.Flags&unix.O_EXCL == 0:
		return fs.openExisting(dir, name, in, out)
	default:
		return status(err)
	}
	n, err := fs.adoptNew(dir, name, fd, in.Owner, in.Mode|unix.S_IFREG, &out.EntryOut)
	if err != nil {
		return status(err)
	}
	code := fs.open(n, in.InHeader, in.Flags, true, &out.OpenOut)
	if !code.Ok() {
		fs.undoNew(dir, name, unix.S_IFREG)
		fs.nodes.moved(n.id)
		fs.forget(n.id, 1)
		return code
	}
	n.madeIn.Store(dir.id)
	return code
}

func (fs *loopback) openExisting(dir *node, name string, in *gofuse.CreateIn, out *gofuse.CreateOut) gofuse.Status {
	n, st, err := fs.lookup(dir, name)
	if err != nil {
		return status(err)
	}
	code := gofuse.EACCES
	if n.kind == unix.S_IFREG {
		code = fs.open(n, in.InHeader, in.Flags, false, &out.OpenOut)
	}
	if code.Ok() && in.Flags&unix.O_TRUNC != 0 {
		if code = fs.truncate(n, Caller{in.Pid}, 0, 0, false); !code.Ok() {
			fs.release(out.Fh)
		}
	}
	if code.Ok() {
		code = status(unix.Fstat(n.fd, &st))
	}
	if !code.Ok() {
		fs.forget(n.id, 1)
		return code
	}
	fs.fillEntry(&out.EntryOut, n, &st)
	return gofuse.OK
}

// openVirtual fixes the content for as long as the handle is open, so that a reader never sees half of two.
func (fs *loopback) openVirtual(in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	path, named := fs.virtualPath(in.NodeId)
	content, ok := fs.virtualContent(path, named)
	if !ok {
		return gofuse.ENOENT
	}
	h := &handle{fd: -1, content: append([]byte(nil), content...)}
	flush := uint32(gofuse.FOPEN_NOFLUSH)
	if _, ok := fs.lockFile(path); ok {
		h.lockFile, h.virtual, flush = path, in.NodeId, 0
	} else if isWritable(in.Flags) {
		return gofuse.EACCES
	}
	fs.addHandle(h, in.Flags)
	out.Fh = h.fh
	out.OpenFlags = gofuse.FOPEN_DIRECT_IO | flush // reads go to the end of the content, whatever the size was at the lookup
	return gofuse.OK
}

// Release closes a handle. The kernel does not wait for it.
func (fs *loopback) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) { fs.release(in.Fh) }

func (fs *loopback) release(fh uint64) {
	h := fs.removeHandle(fh)
	if h == nil {
		return
	}
	if h.node == nil {
		if h.lockFile != "" {
			fs.locks.released(locked{h.virtual, h.lockFile, nil}, fh)
		}
		h.close()
		return
	}
	defer fs.unhold(h.node)
	defer fs.inOrder(h.node)()
	if fs.locks != nil {
		fs.locks.released(locked{h.node.id, fs.pathOrNone(h.node), h.node}, fh)
	}
	last := fs.closeBacked(h.node, h)
	fs.backend.Released(fs.pathOrNone(h.node), h.writable, last)
}

func (fs *loopback) closeBacked(n *node, h *handle) (last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last = fs.closeOne(n, h)
	fs.estate.closed(h.slot)
	return last
}

// closeOne closes a handle of n; n.mu is held. The estate is told afterwards: a handle that it still has and whose
// backing is gone is mended at the next open.
func (fs *loopback) closeOne(n *node, h *handle) (last bool) {
	h.close()
	n.opens--
	here := &n.seats[fs.seat]
	if here.opens--; here.opens == 0 && here.backing != 0 {
		if err := fs.dev.closeBacking(here.backing); err != nil && !fs.over {
			fs.logger.Error("the kernel keeps a passthrough file", "id", here.backing, "err", err)
		}
		here.backing = 0
	}
	if n.opens > 0 {
		return false
	}
	n.sized = false
	return true
}

// Read hands the descriptor to the loop, which reads straight into the reply.
func (fs *loopback) Read(_ <-chan struct{}, in *gofuse.ReadIn, _ []byte) (gofuse.ReadResult, gofuse.Status) {
	h, err := fs.handle(in.NodeId, in.Fh)
	if err != nil {
		return nil, status(err)
	}
	if h.fd < 0 {
		from := min(in.Offset, uint64(len(h.content)))
		to := min(from+uint64(in.Size), uint64(len(h.content)))
		return gofuse.ReadResultData(h.content[from:to]), gofuse.OK
	}
	return gofuse.ReadResultFd(uintptr(h.fd), int64(in.Offset), int(in.Size)), gofuse.OK
}

// Writev is the scattered form of Write, which this loop never needs.
func (fs *loopback) Writev(<-chan struct{}, *gofuse.WriteIn, [][]byte) (uint32, gofuse.Status) {
	return 0, gofuse.ENOSYS
}

func (fs *loopback) Write(_ <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	h, err := fs.handle(in.NodeId, in.Fh)
	if err != nil {
		return 0, status(err)
	}
	if h.fd < 0 || h.node == nil {
		return 0, gofuse.EBADF
	}
	path, named := fs.nodes.pathOf(h.node)
	if named {
		err := fs.backend.Writing(Caller{in.Pid}, path, int64(in.Offset), data)
		if errors.Is(err, ErrTaken) {
			return uint32(len(data)), gofuse.OK
		}
		if err != nil {
			return 0, fs.refused("write", path, err)
		}
	}
	written, err := pwriteFull(h.fd, data, int64(in.Offset))
	if named && written > 0 {
		fs.backend.Wrote(path, int64(in.Offset), written)
	}
	if written > 0 {
		return uint32(written), gofuse.OK // a short write tells of the error at the next one
	}
	return 0, status(err)
}

func pwriteFull(fd int, data []byte, off int64) (int, error) {
	done := 0
	for done < len(data) {
		n, err := unix.Pwrite(fd, data[done:], off+int64(done))
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, syscall.EIO
		}
		done += n
	}
	return done, nil
}

// truncate sets the size of a file, if the Backend agrees: an error means that nothing has changed.
func (fs *loopback) truncate(n *node, c Caller, size int64, fh uint64, withHandle bool) gofuse.Status {
	if path, named := fs.nodes.pathOf(n); named {
		if err := fs.backend.Truncating(c, path, size); err != nil {
			return fs.refused("truncate", path, err)
		}
	}
	fs.noteSized(n)
	if withHandle {
		if h, err := fs.handle(n.id, fh); err == nil && h.writable && h.node == n {
			return status(unix.Ftruncate(h.fd, size))
		}
	}
	err := unix.Truncate(procPath(n.fd), size)
	if err == nil && !c.Own() {
		fs.changedClosed(n)
	}
	return status(err)
}

// changedClosed tells the Backend of a change by path, as of one through a handle that was the last to be closed.
func (fs *loopback) changedClosed(n *node) {
	defer fs.inOrder(n)()
	n.mu.Lock()
	closed := n.opens == 0
	n.mu.Unlock()
	if closed {
		fs.backend.Released(fs.pathOrNone(n), true, true)
	}
}

// fsyncDataOnly is the flag of FSYNC that fdatasync(2) sets.
const fsyncDataOnly = 1

func (fs *loopback) Fsync(_ <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	h, err := fs.handle(in.NodeId, in.Fh)
	if err != nil {
		return status(err)
	}
	if h.fd < 0 || h.node == nil {
		return gofuse.OK
	}
	how := SyncAll
	if path, named := fs.nodes.pathOf(h.node); named {
		how = fs.backend.Syncing(Caller{in.Pid}, path)
	}
	switch {
	case how == SyncBehind:
		return gofuse.OK
	case how == SyncData:
		return status(fs.syncNew(h.node, func() error { return unix.Fdatasync(h.fd) }))
	case in.FsyncFlags&fsyncDataOnly != 0:
		return status(unix.Fdatasync(h.fd))
	}
	return status(unix.Fsync(h.fd))
}

// removes are the modes of fallocate(2) that change what is in the file.
const removes = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_COLLAPSE_RANGE | unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_INSERT_RANGE

func (fs *loopback) Fallocate(_ <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	h, err := fs.handle(in.NodeId, in.Fh)
	if err != nil {
		return status(err)
	}
	if h.fd < 0 || h.node == nil {
		return gofuse.EBADF
	}
	if in.Mode&removes != 0 {
		if path, named := fs.nodes.pathOf(h.node); named {
			if err := fs.backend.Truncating(Caller{in.Pid}, path, int64(in.Offset)); err != nil {
				return fs.refused("fallocate", path, err)
			}
		}
	}
	err = unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
	if errors.Is(err, syscall.ENOSYS) {
		err = syscall.EOPNOTSUPP
	}
	return status(err)
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
func (fs *loopback) Lseek(_ <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	h, err := fs.handle(in.NodeId, in.Fh)
	if err != nil {
		return status(err)
	}
	if h.fd < 0 {
		return gofuse.EINVAL
	}
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}
