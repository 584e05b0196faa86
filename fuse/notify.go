package fuse

import (
	"errors"
	"fmt"
	"path"
	"syscall"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Notifications tell the kernel what changed under Options.Root without a request. They wait for requests in flight (a
// READ in the range; anything that holds the directory), so they must never be sent from a method of the Backend about
// the same file, nor with a lock held that such a method takes.

// ErrEnded is returned by notifications when the session is over.
var ErrEnded = errors.New("the mount has ended")

// NotifyAttr makes the kernel ask for the attributes of the file at path again: its size has changed.
func (s *Session) NotifyAttr(path string) error { return s.notifyInode(path, -1, 0) }

// NotifyRange drops n bytes from off of the file at path from the kernel's cache, and its attributes; n <= 0: to the
// end. Data in Passthrough mode needs no notification.
func (s *Session) NotifyRange(path string, off, n int64) error {
	if off < 0 {
		return fmt.Errorf("notify %s: offset %d: %w", path, off, syscall.EINVAL)
	}
	return s.notifyInode(path, off, n)
}

func (s *Session) notifyInode(path string, off, n int64) error {
	id, ok, err := s.nodeAt(path)
	if err != nil || !ok {
		return err
	}
	out := gofuse.NotifyInvalInodeOut{Ino: id, Off: off, Length: n}
	return s.notifyKernel(-gofuse.NOTIFY_INVAL_INODE, bytesOf(&out))
}

// NotifyEntry makes the kernel look the name at path up again, whether it was there or not.
func (s *Session) NotifyEntry(file string) error {
	dir, name := path.Split(path.Clean(file))
	if err := validName(name); err != nil {
		return fmt.Errorf("notify %q: %w", file, err)
	}
	s.fs.nodes.moves.Add(1) // names have changed behind the nodes
	id, ok, err := s.nodeAt(path.Clean(dir))
	if err != nil || !ok {
		return err
	}
	out := gofuse.NotifyInvalEntryOut{Parent: id, NameLen: uint32(len(name))}
	return s.notifyKernel(-gofuse.NOTIFY_INVAL_ENTRY, bytesOf(&out), []byte(name), []byte{0})
}

// nodeAt returns the nodeid of a path, false when the kernel does not know the inode.
func (s *Session) nodeAt(path string) (uint64, bool, error) {
	s.notify.RLock()
	defer s.notify.RUnlock()
	if s.notify.closed {
		return 0, false, ErrEnded
	}
	nodes := s.fs.nodes
	if path == "" || path == "." {
		return rootID, true, nil
	}
	var st unix.Stat_t
	err := unix.Fstatat(nodes.root.fd, path, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("notify %s: %w", path, err)
	}
	return st.Ino, st.Dev == nodes.dev && nodes.known(st.Ino) != nil, nil
}

// notifyKernel writes a notification: a reply to nobody (unique 0) whose status is the code.
func (s *Session) notifyKernel(code int32, parts ...[]byte) error {
	s.notify.RLock()
	defer s.notify.RUnlock()
	if s.notify.closed {
		return ErrEnded
	}
	h := gofuse.OutHeader{Status: code}
	msg := append([]byte(nil), bytesOf(&h)...)
	for _, p := range parts {
		msg = append(msg, p...)
	}
	(*gofuse.OutHeader)(unsafe.Pointer(&msg[0])).Length = uint32(len(msg))
	_, err := unix.Write(s.dev.fd, msg)
	if err == nil || errors.Is(err, syscall.ENOENT) { // ENOENT: the kernel does not know it
		return nil
	}
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ECONNABORTED) {
		return ErrEnded
	}
	return fmt.Errorf("notify the kernel: %w", err)
}

func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }
