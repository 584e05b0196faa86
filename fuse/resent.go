package fuse

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// This file answers what the kernel sends once more: a request that a session before this one has read, and perhaps
// carried out, but not answered (FUSE_NOTIFY_RESEND, include/uapi/linux/fuse.h).
//
// Most requests can be carried out twice. One that makes or removes a name cannot, but needs no record either: while it
// waits for its answer the kernel keeps the directory locked, and it has looked the name up before. So when a resent
// CREATE finds the name there, or a resent UNLINK finds it gone, the session before did that.

// resent is the bit of a request's number that says so (FUSE_UNIQUE_RESEND).
const resent = 1 << 63

func isResent(unique uint64) bool { return unique&resent != 0 }

// undoUnanswered closes the handle that the session before opened for a request whose answer the kernel never got.
func (fs *loopback) undoUnanswered(unique uint64) {
	if !isResent(unique) {
		return
	}
	if fh, ok := fs.estate.unanswered(unique); ok {
		fs.release(fh)
	}
}

// reopen opens a directory or a virtual file again that was open in a session before. Handles of files are never missing:
// the estate has them.
func (fs *loopback) reopen(id, fh uint64) (*handle, error) {
	h := &handle{fh: fh, fd: -1, slot: noSlot}
	if isVirtual(id) {
		content, ok := fs.virtualContent(fs.virtualPath(id))
		if !ok {
			return nil, syscall.ESTALE
		}
		h.content = append([]byte(nil), content...)
	} else {
		n, err := fs.nodes.get(id)
		if err != nil {
			return nil, err
		}
		if n.kind != unix.S_IFDIR {
			return nil, syscall.EBADF
		}
		fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		h.node, h.fd, h.dir = n, fd, &dirStream{}
	}
	fs.handles.Lock()
	defer fs.handles.Unlock()
	if other := fs.handles.open[fh]; other != nil {
		h.close()
		return other, nil
	}
	fs.handles.open[fh] = h
	return h, nil
}

// noteSized records that the size of an open file is being set.
func (fs *loopback) noteSized(n *node) {
	n.mu.Lock()
	first := n.opens > 0 && !n.sized
	n.sized = n.sized || first
	n.mu.Unlock()
	if !first || fs.estate == nil {
		return
	}
	fs.handles.RLock()
	defer fs.handles.RUnlock()
	for _, h := range fs.handles.open {
		if h.node == n {
			fs.estate.sized(h.slot)
		}
	}
}

// keepNode gives the pin of a file that is open and about to lose its name to the Keeper: the next session would not find
// it in the tree.
func (fs *loopback) keepNode(ino uint64) error {
	if fs.keeper == nil {
		return nil
	}
	n := fs.nodes.known(ino)
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.opens == 0 || n.kept {
		return nil
	}
	if err := fs.keeper.Keep(keptName(ino), n.fd); err != nil {
		return fmt.Errorf("keep a file that loses its name: %w", err)
	}
	n.kept = true
	return nil
}

func keptName(ino uint64) string { return keptNode + strconv.FormatUint(ino, 10) }

// unhold ends a handle's reference on its node.
func (fs *loopback) unhold(n *node) {
	n.mu.Lock()
	drop := n.kept && n.opens == 0
	if drop {
		n.kept = false
	}
	n.mu.Unlock()
	if drop {
		if err := fs.keeper.Drop(keptName(n.id)); err != nil {
			fs.logger.Error("a file without a name stays behind", "node", n.id, "err", err)
		}
	}
	fs.nodes.letGo(n)
}

// goneBefore reports whether a name that a request removes or moves is gone because the session before has done it.
func goneBefore(unique uint64, err error) bool {
	return isResent(unique) && errors.Is(err, syscall.ENOENT)
}

// madeBefore reports whether a name that a request makes is there because the session before has made it.
func madeBefore(unique uint64, err error) bool {
	return isResent(unique) && errors.Is(err, syscall.EEXIST)
}

// resend makes the kernel send again what was read and not answered.
func (s *Session) resend() error {
	h := gofuse.OutHeader{Length: uint32(outHeaderSize), Status: -gofuse.NOTIFY_RESEND}
	if _, err := unix.Write(s.dev.fd, bytesOf(&h)); err != nil {
		return fmt.Errorf("ask the kernel for the requests that were not answered: %w", err)
	}
	return nil
}
