package fuse

import (
	"cmp"
	"slices"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// This file makes, removes and moves names.

// owned gives a new file its owner and mode. The files are made by the daemon, which is another user and has a umask of
// its own; the kernel has already applied that of the caller. The parent's inode is locked by the kernel meanwhile, so
// nobody sees the file before.
//
// fd may be a descriptor of O_PATH, open is one that is not, or -1: the mode is then set by a path, which takes longer.
func owned(dir *node, fd, open int, c gofuse.Owner, mode uint32) error {
	var parent, st unix.Stat_t
	if err := unix.Fstat(dir.fd, &parent); err != nil {
		return err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	gid := c.Gid
	if parent.Mode&unix.S_ISGID != 0 {
		gid = st.Gid // given by the directory
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			mode |= unix.S_ISGID
		}
	}
	if st.Uid != c.Uid || st.Gid != gid {
		if err := unix.Fchownat(fd, "", int(c.Uid), int(gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if open >= 0 {
		return unix.Fchmod(open, mode&0o7777)
	}
	return unix.Fchmodat(unix.AT_FDCWD, procPath(fd), mode&0o7777, 0)
}

// adoptNew looks a name up that has just been made, gives it its owner and mode, and fills the reply. On an error the
// name is removed again. open is a descriptor of a regular file, or -1.
func (fs *loopback) adoptNew(dir *node, name string, open int, c gofuse.Owner, mode uint32, out *gofuse.EntryOut) (*node, error) {
	dir.changedIn()
	n, st, err := fs.lookup(dir, name)
	if err == nil {
		err = owned(dir, n.fd, open, c, mode)
		if err == nil {
			err = unix.Fstat(n.fd, &st)
		}
		if err != nil {
			fs.forget(n.id, 1)
		}
	}
	if err != nil {
		fs.undoNew(dir, name, mode)
		return nil, err
	}
	fs.fillEntry(out, n, &st)
	return n, nil
}

// undoNew removes a name that has just been made.
func (fs *loopback) undoNew(dir *node, name string, mode uint32) {
	flags := 0
	if mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	if err := unix.Unlinkat(dir.fd, name, flags); err != nil {
		fs.logger.Error("a new file stays behind after an error", "name", name, "err", err)
	}
	dir.changedIn()
}

// Mknod makes a regular file. Devices, pipes and sockets have no place among databases.
func (fs *loopback) Mknod(_ <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	if in.Mode&unix.S_IFMT != unix.S_IFREG {
		return gofuse.EPERM
	}
	dir, err := fs.directory(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	if path, ok := fs.nodes.childPath(dir, name); ok {
		if err := fs.backend.Creating(Caller{in.Pid}, path); err != nil {
			return fs.refused("create", path, err)
		}
	}
	fd, err := unix.Openat(dir.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	} else if !madeBefore(in.Unique, err) {
		return status(err)
	}
	_, err = fs.adoptNew(dir, name, -1, in.Owner, in.Mode, out)
	return status(err)
}

func (fs *loopback) Mkdir(_ <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, err := fs.directory(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	if err := unix.Mkdirat(dir.fd, name, 0o700); err != nil && !madeBefore(in.Unique, err) {
		return status(err)
	}
	_, err = fs.adoptNew(dir, name, -1, in.Owner, in.Mode|unix.S_IFDIR, out)
	return status(err)
}

func (fs *loopback) Symlink(_ <-chan struct{}, h *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, err := fs.directory(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	if err := unix.Symlinkat(target, dir.fd, name); err != nil && !madeBefore(h.Unique, err) {
		return status(err)
	}
	_, err = fs.adoptNew(dir, name, -1, h.Owner, unix.S_IFLNK, out)
	return status(err)
}

// Link refuses hard links: two names of one inode would be two databases over the same bytes, each with a -wal, a
// journal and a record of its own.
func (fs *loopback) Link(<-chan struct{}, *gofuse.LinkIn, string, *gofuse.EntryOut) gofuse.Status {
	return gofuse.EPERM
}

func (fs *loopback) Unlink(_ <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	dir, err := fs.directory(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	path, named := fs.nodes.childPath(dir, name)
	var st unix.Stat_t
	if err := unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if _, virtual := fs.virtualContent(path, named); virtual {
			return gofuse.EPERM
		}
		if goneBefore(h.Unique, err) {
			if named {
				fs.backend.Unlinked(path, nil)
			}
			return gofuse.OK
		}
		return status(err)
	}
	if named {
		if err := fs.backend.Unlinking(Caller{h.Pid}, path); err != nil {
			return fs.refused("unlink", path, err)
		}
	}
	if c := (Caller{h.Pid}); !c.Own() {
		defer fs.inOrder(fs.nodes.known(st.Ino))()
	}
	if err := fs.keepNode(st.Ino); err != nil {
		return fs.refused("unlink", path, err)
	}
	err = unix.Unlinkat(dir.fd, name, 0)
	dir.changedIn()
	fs.nodes.moved(st.Ino)
	if err == nil {
		fs.nodes.nameless(st.Ino)
	}
	if named {
		fs.backend.Unlinked(path, err)
	}
	return status(err)
}

// inOrder keeps other events of the nodes from the Backend until the returned function is called. A nil node has none.
//
// Without it a file that is closed and renamed at once (cp to a temporary name, then mv) would be told as closed under
// a name that is gone already, and under the new one as open for ever.
func (fs *loopback) inOrder(nodes ...*node) (done func()) {
	slices.SortFunc(nodes, func(a, b *node) int {
		if a == nil || b == nil {
			return 0
		}
		return cmp.Compare(a.id, b.id)
	})
	fs.naming.RLock()
	for _, n := range nodes {
		if n != nil {
			n.order.Lock()
		}
	}
	return func() {
		for _, n := range nodes {
			if n != nil {
				n.order.Unlock()
			}
		}
		fs.naming.RUnlock()
	}
}

// inOrderBelow is inOrder for a directory and all that is in it.
func (fs *loopback) inOrderBelow() (done func()) {
	fs.naming.Lock()
	return fs.naming.Unlock
}

func (fs *loopback) Rmdir(_ <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	dir, err := fs.directory(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	err = unix.Unlinkat(dir.fd, name, unix.AT_REMOVEDIR)
	dir.changedIn()
	fs.nodes.moves.Add(1)
	if goneBefore(h.Unique, err) {
		return gofuse.OK
	}
	return status(err)
}

// Rename moves a file or a directory. Of the flags of renameat2(2) only RENAME_NOREPLACE is taken: exchanging two
// databases under their open handles has no meaning here.
func (fs *loopback) Rename(_ <-chan struct{}, in *gofuse.RenameIn, oldName, newName string) gofuse.Status {
	if in.Flags&^unix.RENAME_NOREPLACE != 0 {
		return gofuse.EINVAL
	}
	from, err := fs.directory(in.NodeId, oldName)
	if err != nil {
		return status(err)
	}
	to, err := fs.directory(in.Newdir, newName)
	if err != nil {
		return status(err)
	}
	var source, target unix.Stat_t
	serr := unix.Fstatat(from.fd, oldName, &source, unix.AT_SYMLINK_NOFOLLOW)
	replaces := unix.Fstatat(to.fd, newName, &target, unix.AT_SYMLINK_NOFOLLOW) == nil
	if replaces && goneBefore(in.Unique, serr) {
		oldPath, named := fs.nodes.childPath(from, oldName)
		newPath, alsoNamed := fs.nodes.childPath(to, newName)
		if named && alsoNamed {
			fs.backend.Renamed(oldPath, newPath, nil)
		}
		return gofuse.OK
	}
	if serr != nil {
		return status(serr)
	}
	if replaces && in.Flags&unix.RENAME_NOREPLACE != 0 {
		return gofuse.Status(syscall.EEXIST)
	}
	oldPath, named := fs.nodes.childPath(from, oldName)
	newPath, alsoNamed := fs.nodes.childPath(to, newName)
	named = named && alsoNamed
	if named {
		if err := fs.backend.Renaming(Caller{in.Pid}, oldPath, newPath); err != nil {
			return fs.refused("rename", oldPath, err)
		}
	}
	if c := (Caller{in.Pid}); !c.Own() {
		defer fs.orderOfRename(&source, &target, replaces)()
	}
	if replaces {
		if err := fs.keepNode(target.Ino); err != nil {
			return fs.refused("rename", newPath, err)
		}
	}
	err = unix.Renameat2(from.fd, oldName, to.fd, newName, uint(in.Flags))
	from.changedIn()
	to.changedIn()
	if source.Mode&unix.S_IFMT == unix.S_IFDIR {
		fs.nodes.moves.Add(1) // everything below has moved too
	} else {
		fs.nodes.moved(source.Ino)
	}
	if replaces {
		fs.nodes.moved(target.Ino)
		if err == nil && target.Ino != source.Ino {
			fs.nodes.nameless(target.Ino)
		}
	}
	if named {
		fs.backend.Renamed(oldPath, newPath, err)
	}
	return status(err)
}

func (fs *loopback) orderOfRename(source, target *unix.Stat_t, replaces bool) (done func()) {
	if source.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fs.inOrderBelow()
	}
	nodes := []*node{fs.nodes.known(source.Ino)}
	if replaces && target.Ino != source.Ino {
		nodes = append(nodes, fs.nodes.known(target.Ino))
	}
	return fs.inOrder(nodes...)
}
