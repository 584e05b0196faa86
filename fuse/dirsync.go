package fuse

import (
	"errors"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// SQLite makes a new journal durable by an fsync of the file and then one of its directory, before it goes on. The first
// of them does both at once here, and the second finds the directory as it was then and has nothing to do. Nothing is
// answered before it is true.

// changedIn notes, after it happened, that names in a directory have changed.
func (n *node) changedIn() { n.changes.Add(1) }

// syncDirectory makes the names in a directory durable, unless they are since its last sync.
func syncDirectory(n *node, sync func() error) error {
	changes := n.changes.Load() // a name that comes while the sync is under way is not in it
	if n.synced.Load() == changes+1 {
		return nil
	}
	if err := sync(); err != nil {
		return err
	}
	n.synced.Store(changes + 1)
	return nil
}

// syncNew is the sync of a file: the first one since it was made makes its directory durable meanwhile.
func (fs *loopback) syncNew(n *node, sync func() error) error {
	id := n.madeIn.Swap(0)
	if id == 0 {
		return sync()
	}
	dir := fs.nodes.known(id)
	if dir == nil || !fs.nodes.hold(dir) {
		return sync()
	}
	defer fs.nodes.letGo(dir)
	done := make(chan error, 1)
	go func() { done <- syncDirectory(dir, dir.syncNames) }()
	return errors.Join(sync(), <-done)
}

// syncNames is fsync(2) of a directory.
func (n *node) syncNames() error {
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}

func (fs *loopback) FsyncDir(_ <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	h, err := fs.handle(in.NodeId, in.Fh)
	if err != nil {
		return status(err)
	}
	if h.node == nil {
		return gofuse.EBADF
	}
	return status(syncDirectory(h.node, func() error { return unix.Fsync(h.fd) }))
}
