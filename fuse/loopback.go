package fuse

import (
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// validity is how long the kernel may keep names, missing names and attributes. Nothing changes them but requests
// through the mount, whose replies carry the new values, and the daemon, which notifies.
const validity = time.Hour

// loopback answers the requests from the files under the root. Operations it does not have are answered ENOSYS by the
// embedded default, which the kernel remembers: ACCESS (modes are checked by the kernel), xattrs, COPY_FILE_RANGE
// (the kernel copies by reads and writes, which the Backend sees), TMPFILE, STATX.
type loopback struct {
	gofuse.RawFileSystem

	logger      *slog.Logger
	backend     Backend
	dev         *device
	estate      *estate
	keeper      Keeper // nil: none
	passthrough func() bool
	nodes       *table
	virtuals    virtualTable
	complaints  complaints
	locks       *forwarded // nil: the kernel keeps them

	shared bool     // another mount shows the same files
	seat   int      // in node.seats
	looked *lookups // nil: of the first mount
	over   bool     // the connection has ended; set when nothing else runs

	// naming is held over a rename of a directory and the Renamed that tells it, and shared over every other event that
	// names a path: so that the Backend hears of a file under the name by which it knows it. Taken before node.order.
	naming *sync.RWMutex

	handles struct {
		sync.RWMutex
		last uint64
		open map[uint64]*handle
		none chan struct{} // of one: told when the last is gone
	}
}

func newLoopback(s *Session, nodes *table) *loopback {
	fs := &loopback{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		logger:        s.logger,
		backend:       s.opt.Backend,
		dev:           s.dev,
		estate:        s.estate,
		keeper:        s.opt.Keeper,
		passthrough:   func() bool { return s.passthrough },
		nodes:         nodes,
		naming:        new(sync.RWMutex),
		shared:        s.opt.Shared,
	}
	if s.opt.Locker != nil {
		fs.locks = newForwarded(s.opt.Locker, s.relief.over)
	}
	if s.opt.Beside != nil {
		fs.sitBeside(s.opt.Beside.fs)
	}
	fs.handles.open = make(map[uint64]*handle)
	fs.handles.none = make(chan struct{}, 1)
	fs.handles.last = s.estate.firstHandle()
	return fs
}

func (fs *loopback) String() string { return fsName }

// closeAll closes every descriptor. The loop has ended.
func (fs *loopback) closeAll() {
	if fs.looked != nil {
		fs.leave()
	}
	fs.handles.Lock()
	for _, h := range fs.handles.open {
		h.close()
	}
	fs.handles.open = nil
	fs.handles.Unlock()
	if fs.locks != nil {
		fs.locks.closeAll()
	}
	if fs.looked == nil {
		fs.nodes.closeAll()
	}
}

// Lookup finds a name. A missing one is answered with nodeid 0, which the kernel remembers, unlike ENOENT.
func (fs *loopback) Lookup(_ <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, err := fs.directory(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	n, st, err := fs.lookup(dir, name)
	if errors.Is(err, syscall.ENOENT) {
		path, ok := fs.nodes.childPath(dir, name)
		if ok && fs.lookupVirtual(path, out) {
			return gofuse.OK
		}
		if fs.shared || ok && fs.backend.Volatile(path) {
			return gofuse.ENOENT
		}
		out.SetEntryTimeout(validity)
		return gofuse.OK
	}
	if err != nil {
		return status(err)
	}
	fs.fillEntry(out, n, &st)
	return gofuse.OK
}

// directory returns the node of a directory in which name is looked for or made.
func (fs *loopback) directory(id uint64, name string) (*node, error) {
	if err := validName(name); err != nil {
		return nil, err
	}
	return fs.nodes.get(id)
}

func (fs *loopback) fillEntry(out *gofuse.EntryOut, n *node, st *unix.Stat_t) {
	out.NodeId = n.id
	out.SetEntryTimeout(fs.validity())
	out.SetAttrTimeout(fs.validity())
	fillAttr(&out.Attr, st)
}

func fillAttr(a *gofuse.Attr, st *unix.Stat_t) {
	*a = gofuse.Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: uint64(st.Atim.Sec), Atimensec: uint32(st.Atim.Nsec),
		Mtime: uint64(st.Mtim.Sec), Mtimensec: uint32(st.Mtim.Nsec),
		Ctime: uint64(st.Ctim.Sec), Ctimensec: uint32(st.Ctim.Nsec),
		Mode: st.Mode, Nlink: uint32(st.Nlink), Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize),
		Owner: gofuse.Owner{Uid: st.Uid, Gid: st.Gid},
	}
}

// Forget drops references of the kernel.
func (fs *loopback) Forget(id, lookups uint64) {
	if isVirtual(id) {
		fs.virtuals.forget(id, lookups)
		return
	}
	fs.forget(id, lookups)
}

func (fs *loopback) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if isVirtual(in.NodeId) {
		return fs.virtualAttr(in.NodeId, &out.Attr)
	}
	n, err := fs.nodes.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	return fs.attributes(n, out)
}

func (fs *loopback) attributes(n *node, out *gofuse.AttrOut) gofuse.Status {
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return status(err)
	}
	out.SetTimeout(fs.validity())
	fillAttr(&out.Attr, &st)
	return gofuse.OK
}

// SetAttr changes size, owner, mode and times. The size comes first: the Backend may refuse it.
func (fs *loopback) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if isVirtual(in.NodeId) {
		return gofuse.EPERM
	}
	n, err := fs.nodes.get(in.NodeId)
	if err != nil {
		return status(err)
	}
	if size, ok := in.GetSize(); ok {
		fh, withHandle := in.GetFh()
		if code := fs.truncate(n, Caller{in.Pid}, int64(size), fh, withHandle); !code.Ok() {
			return code
		}
	}
	if err := setOwner(n, in); err != nil {
		return status(err)
	}
	// After the owner: chown(2) takes the set-user-id bit away.
	if mode, ok := in.GetMode(); ok {
		if err := unix.Fchmodat(unix.AT_FDCWD, procPath(n.fd), mode, 0); err != nil {
			return status(err)
		}
	}
	if err := setTimes(n, in); err != nil {
		return status(err)
	}
	return fs.attributes(n, out)
}

func setOwner(n *node, in *gofuse.SetAttrIn) error {
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if !hasUID && !hasGID {
		return nil
	}
	owner, group := -1, -1
	if hasUID {
		owner = int(uid)
	}
	if hasGID {
		group = int(gid)
	}
	return unix.Fchownat(n.fd, "", owner, group, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
}

func setTimes(n *node, in *gofuse.SetAttrIn) error {
	const times = gofuse.FATTR_ATIME | gofuse.FATTR_MTIME
	if in.Valid&times == 0 {
		return nil
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if in.Valid&gofuse.FATTR_ATIME_NOW != 0 {
		ts[0].Nsec = unix.UTIME_NOW
	} else if in.Valid&gofuse.FATTR_ATIME != 0 {
		ts[0] = unix.Timespec{Sec: int64(in.Atime), Nsec: int64(in.Atimensec)}
	}
	if in.Valid&gofuse.FATTR_MTIME_NOW != 0 {
		ts[1].Nsec = unix.UTIME_NOW
	} else if in.Valid&gofuse.FATTR_MTIME != 0 {
		ts[1] = unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}
	}
	if n.kind == unix.S_IFLNK { // its entry in /proc would be followed to the target
		return unix.UtimesNanoAt(n.fd, "", ts, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(n.fd), ts, 0)
}

func (fs *loopback) Readlink(_ <-chan struct{}, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	n, err := fs.nodes.get(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], gofuse.OK
}

func (fs *loopback) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fs.nodes.root.fd, &st); err != nil {
		return status(err)
	}
	*out = gofuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return gofuse.OK
}

// Ioctl has no command to offer.
func (fs *loopback) Ioctl(<-chan struct{}, *gofuse.IoctlIn, []byte, *gofuse.IoctlOut, []byte) gofuse.Status {
	return gofuse.Status(syscall.ENOTTY)
}
