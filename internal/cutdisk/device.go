package cutdisk

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Device is a block device of the kernel that a Disk is behind.
type Device struct {
	// Path of the device.
	Path string

	fd     int // of the loop device
	server *fuse.Server
}

// Attach makes a block device of a disk. dir is an empty directory that is used as long as the device is.
// It needs the rights to mount, and loop devices.
func Attach(d *Disk, dir string) (*Device, error) {
	server, err := fs.Mount(dir, &rootNode{disk: d}, &fs.Options{MountOptions: fuse.MountOptions{
		FsName: "cutdisk", Name: "cutdisk", DirectMountStrict: true, MaxWrite: 1 << 20,
	}})
	if err != nil {
		return nil, fmt.Errorf("serve a disk as a file: %w", err)
	}
	dev := &Device{fd: -1, server: server}
	if dev.Path, dev.fd, err = loop(filepath.Join(dir, fileName), directIO); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return dev, nil
}

// Close takes the device away. Its file system must be unmounted.
func (d *Device) Close() error {
	var err error
	if d.fd >= 0 {
		err = unix.Close(d.fd) // the last close detaches it
		d.fd = -1
	}
	if err = errors.Join(err, d.server.Unmount()); err != nil {
		return fmt.Errorf("end of a disk: %w", err)
	}
	d.server.Wait()
	return nil
}

// File is a block device over a plain file.
type File struct {
	Path string // of the device
	fd   int
}

// AttachFile makes a block device of the file at path.
func AttachFile(path string) (*File, error) {
	dev, fd, err := loop(path, 0)
	if err != nil {
		return nil, err
	}
	return &File{Path: dev, fd: fd}, nil
}

// Close takes the device away, as soon as its file system is unmounted.
func (f *File) Close() error { return unix.Close(f.fd) }

// Flags of a loop device (linux/loop.h).
const (
	autoclear = 4  // LO_FLAGS_AUTOCLEAR: detached at its last close
	directIO  = 16 // LO_FLAGS_DIRECT_IO
)

// loop makes a loop device of the file at path.
func loop(path string, flags uint32) (dev string, fd int, err error) {
	file, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", -1, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(file) //nolint:errcheck // the device has its own
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", -1, fmt.Errorf("loop devices: %w", err)
	}
	defer unix.Close(control) //nolint:errcheck // nothing was written
	for {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", -1, fmt.Errorf("a free loop device: %w", err)
		}
		dev = fmt.Sprintf("/dev/loop%d", n)
		if fd, err = unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return "", -1, fmt.Errorf("open %s: %w", dev, err)
		}
		err = unix.IoctlLoopConfigure(fd, &unix.LoopConfig{Fd: uint32(file), Info: unix.LoopInfo64{Flags: flags | autoclear}})
		if err == nil {
			return dev, fd, nil
		}
		err = errors.Join(fmt.Errorf("attach %s to %s: %w", path, dev, err), unix.Close(fd))
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return "", -1, err
		}
	}
}

// fileName is what the file is called that a disk is served as.
const fileName = "disk"

// rootNode is a directory with one file.
type rootNode struct {
	fs.Inode
	disk *Disk
}

func (r *rootNode) OnAdd(ctx context.Context) {
	r.AddChild(fileName, r.NewPersistentInode(ctx, &diskNode{disk: r.disk}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
}

// diskNode is that file.
type diskNode struct {
	fs.Inode
	disk *Disk
}

var (
	_ fs.NodeGetattrer = (*diskNode)(nil)
	_ fs.NodeOpener    = (*diskNode)(nil)
	_ fs.NodeReader    = (*diskNode)(nil)
	_ fs.NodeWriter    = (*diskNode)(nil)
	_ fs.NodeFsyncer   = (*diskNode)(nil)
)

func (n *diskNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(n.disk.Size())
	return 0
}

func (n *diskNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (n *diskNode) Read(_ context.Context, _ fs.FileHandle, b []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(b[:n.disk.ReadAt(b, off)]), 0
}

func (n *diskNode) Write(_ context.Context, _ fs.FileHandle, b []byte, off int64) (uint32, syscall.Errno) {
	if err := n.disk.WriteAt(b, off); err != nil {
		return 0, syscall.ENOSPC
	}
	return uint32(len(b)), 0
}

func (n *diskNode) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.disk.Flush()
	return 0
}
