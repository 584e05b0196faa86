package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	fsName     = "litefs"
	devFuse    = "/dev/fuse"
	controlDir = "/sys/fs/fuse/connections" // where fusectl is usually mounted

	// maxWrite is the largest payload of one READ or WRITE, in bytes: what kernels before 6.13 allow without a setting.
	maxWrite = 128 << 10

	busyPollMin = 2 * time.Millisecond // an unmount has no wake-up for "no longer busy"
	busyPollMax = 100 * time.Millisecond
)

// device is an open connection to the kernel and the mount it serves.
type device struct {
	fd     int
	dir    string
	mount  mountEntry // as it was made
	helper bool       // mounted by fusermount3, for want of the privilege
	logger *slog.Logger
}

// openDevice mounts on dir: by mount(2), or with the help of fusermount3 when that is not permitted.
func openDevice(ctx context.Context, dir string, allowOther bool, logger *slog.Logger) (*device, error) {
	d := &device{dir: dir, logger: logger}
	// Both always together: without default_permissions the kernel checks no modes, and without allow_other it lets in
	// the mounting user alone.
	options := []string{"default_permissions", "max_read=" + strconv.Itoa(maxWrite)}
	if allowOther {
		options = append(options, "allow_other")
	}
	err := d.mountDirect(options)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		if herr := d.mountHelper(ctx, options); herr != nil {
			return nil, fmt.Errorf("mount %s: %w; fusermount3: %w", dir, err, herr)
		}
		d.helper, err = true, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	m, ok, err := mountAt(dir)
	if err == nil && !ok {
		err = errors.New("not in the mount table")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), d.unmount(unix.MNT_DETACH), unix.Close(d.fd))
	}
	d.mount = m
	return d, nil
}

func (d *device) mountDirect(options []string) error {
	fd, err := unix.Open(devFuse, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", devFuse, err)
	}
	all := append([]string{
		"fd=" + strconv.Itoa(fd),
		"rootmode=40000",
		"user_id=" + strconv.Itoa(os.Geteuid()),
		"group_id=" + strconv.Itoa(os.Getegid()),
	}, options...)
	err = unix.Mount(fsName, d.dir, "fuse."+fsName, unix.MS_NOSUID|unix.MS_NODEV, strings.Join(all, ","))
	if err != nil {
		unix.Close(fd)
		return err
	}
	d.fd = fd
	return nil
}

// mountHelper lets fusermount3, which is setuid root, open the device and mount; it sends the descriptor back over a
// socket pair.
func (d *device) mountHelper(ctx context.Context, options []string) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount3")
	all := append([]string{"fsname=" + fsName, "subtype=" + fsName}, options...)
	cmd := exec.CommandContext(ctx, "fusermount3", "-o", strings.Join(all, ","), "--", d.dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close() // before the receive: an end that nobody holds cannot keep us waiting
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("receive the descriptor: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("receive the descriptor: %d control messages: %w", len(msgs), errors.Join(err, syscall.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("receive the descriptor: %d descriptors: %w", len(fds), errors.Join(err, syscall.EBADMSG))
	}
	d.fd = fds[0]
	return nil
}

// mounted reports whether our mount is the one that dir shows.
func (d *device) mounted() (bool, error) {
	m, ok, err := mountAt(d.dir)
	return ok && m.dev == d.mount.dev, err
}

// unmount tries once. flags are those of umount2(2).
func (d *device) unmount(flags int) error {
	if !d.helper {
		return unix.Unmount(d.dir, flags|unix.UMOUNT_NOFOLLOW)
	}
	args := []string{"-u"}
	if flags&unix.MNT_DETACH != 0 {
		args = append(args, "-z")
	}
	out, err := exec.Command("fusermount3", append(args, "--", d.dir)...).CombinedOutput()
	if err != nil && strings.Contains(string(out), "busy") {
		return syscall.EBUSY
	}
	if err != nil {
		return fmt.Errorf("fusermount3 -u %s: %w: %s", d.dir, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// unmountIdle unmounts when no process uses the mount, waiting for that until ctx is done (then syscall.EBUSY). released
// waits until all that was closed is known to be. A mount that is already gone is no error.
func (d *device) unmountIdle(ctx context.Context, released func(context.Context)) error {
	wait := busyPollMin
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if ok, err := d.mounted(); err != nil || !ok {
			return err
		}
		released(ctx)
		err := d.unmount(0)
		if err == nil || !errors.Is(err, syscall.EBUSY) {
			return err
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", d.dir, syscall.EBUSY)
		case <-timer.C:
		}
		wait = min(2*wait, busyPollMax)
	}
}

// abort ends the connection: requests in flight and later ones fail. Descriptors open in Passthrough mode go on to
// read and write their files. A connection that has ended is left alone: its number may be another mount's by now.
func (d *device) abort() error {
	if !d.connected() {
		return nil
	}
	var minor uint32
	if _, err := fmt.Sscanf(d.mount.dev, "0:%d", &minor); err != nil {
		return fmt.Errorf("abort %s: device number %q: %w", d.dir, d.mount.dev, err)
	}
	err := os.WriteFile(filepath.Join(controlDir, strconv.Itoa(int(minor)), "abort"), []byte("1"), 0)
	if err == nil {
		return nil
	}
	// The control file system is not mounted. A forced unmount aborts too, even when it then says "busy".
	if ok, merr := d.mounted(); merr != nil || ok && !d.helper {
		if merr == nil {
			merr = d.unmount(unix.MNT_FORCE)
		}
		if merr == nil || errors.Is(merr, syscall.EBUSY) {
			return nil
		}
		return fmt.Errorf("abort %s: %w", d.dir, errors.Join(err, merr))
	}
	if cerr := abortByControl(minor); cerr != nil {
		return fmt.Errorf("abort %s: %w", d.dir, errors.Join(err, cerr))
	}
	return nil
}

// connected reports whether the kernel still has the connection (fuse_dev_poll: POLLERR when not; POLLNVAL after our close).
func (d *device) connected() bool {
	fds := []unix.PollFd{{Fd: int32(d.fd)}}
	_, err := unix.Poll(fds, 0)
	return err != nil || fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
}

// abortByControl aborts a connection that has no mount any more through a control file system of our own.
func abortByControl(minor uint32) (err error) {
	dir, err := os.MkdirTemp("", fsName+"-control-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount("none", dir, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	return os.WriteFile(filepath.Join(dir, strconv.Itoa(int(minor)), "abort"), []byte("1"), 0)
}

// backingMap is struct fuse_backing_map.
type backingMap struct {
	fd      int32
	flags   uint32
	padding uint64
}

const (
	iocBackingOpen  = 0x4010e501
	iocBackingClose = 0x4004e502
)

// openBacking registers an open file for Passthrough and returns its id.
func (d *device) openBacking(fd int) (int32, error) {
	m := backingMap{fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), iocBackingOpen, uintptr(unsafe.Pointer(&m)))
	if errno != 0 {
		return 0, errno
	}
	return int32(id), nil
}

func (d *device) closeBacking(id int32) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), iocBackingClose, uintptr(unsafe.Pointer(&id)))
	if errno != 0 {
		return errno
	}
	return nil
}
