package fuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mountEntry is one line of /proc/self/mountinfo.
type mountEntry struct {
	id     string
	dev    string // "major:minor"
	dir    string
	fstype string
}

// mounts lists the mounts of this process's namespace, in the order they were made.
func mounts() ([]mountEntry, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return parseMounts(string(b))
}

// parseMounts reads lines such as
//
//	36 35 98:0 /root /mnt/dir rw,noatime shared:1 - ext4 /dev/sda rw
//
// (proc_pid_mountinfo(5)).
func parseMounts(text string) ([]mountEntry, error) {
	var entries []mountEntry
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		dash := -1
		for i := 6; i < len(f); i++ {
			if f[i] == "-" {
				dash = i
				break
			}
		}
		if dash < 0 || dash+1 >= len(f) {
			return nil, fmt.Errorf("mount table: no file system type in line %q", strings.TrimSpace(line))
		}
		entries = append(entries, mountEntry{id: f[0], dev: f[2], dir: unescape.Replace(f[4]), fstype: f[dash+1]})
	}
	return entries, nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mountAt returns the mount that dir, an absolute path without symbolic links, shows.
func mountAt(dir string) (mountEntry, bool, error) {
	all, err := mounts()
	if err != nil {
		return mountEntry{}, false, err
	}
	var found mountEntry
	ok := false
	for _, m := range all {
		if m.dir == dir {
			found, ok = m, true // the last one covers the others
		}
	}
	return found, ok, nil
}

// resolve returns the absolute path of a mount point without symbolic links above it. A mount is not touched: a dead
// one answers ENOTCONN to everything, one whose daemon hangs does not answer.
func resolve(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", dir, err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", dir, err)
	}
	full := filepath.Join(parent, filepath.Base(abs))
	if _, mounted, err := mountAt(full); err != nil || mounted {
		return full, err
	}
	target, err := filepath.EvalSymlinks(full)
	if err != nil {
		return full, nil // missing: CheckMountPoint says so
	}
	return target, nil
}

// CheckMountPoint reports why dir cannot be mounted on: it must be an empty directory that nothing is mounted on.
// A mount that a dead daemon left is not refused here but cleaned by Unstale, which comes first.
func CheckMountPoint(dir string) error {
	path, err := resolve(dir)
	if err != nil {
		return err
	}
	if m, ok, err := mountAt(path); err != nil {
		return err
	} else if ok {
		return fmt.Errorf("mount point %s is in use: a file system of type %s is mounted there; unmount it or choose another directory", path, m.fstype)
	}
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("mount point %s does not exist: create the directory", path)
	}
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("mount point %s is not a directory", path)
	}
	names, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if len(names) > 0 {
		return fmt.Errorf("mount point %s is not empty (%q is in it): the mount would hide its files; move them or choose another directory", path, names[0].Name())
	}
	return nil
}

// Unstale removes the mounts at dir whose daemon is dead. It refuses, naming the processes, while some of them have
// files open there: a new mount over the old one would be a second set of locks over the same files.
// A live mount, or none, is left as it is; one that does not answer is an error.
func Unstale(dir string) error { return unstale(dir, answerTimeout) }

// answerTimeout is how long a mount may take to answer before it counts as hung.
const answerTimeout = 10 * time.Second

func unstale(dir string, timeout time.Duration) error {
	path, err := resolve(dir)
	if err != nil {
		return err
	}
	for {
		m, ok, err := mountAt(path)
		if err != nil || !ok {
			return err
		}
		if dead, err := isDead(path, timeout); err != nil || !dead {
			return err
		}
		users, err := usersOf(m, path)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return fmt.Errorf("mount point %s belongs to a daemon that is dead, and is still used by %s: end these processes first", path, strings.Join(users, ", "))
		}
		if err := (&device{dir: path, helper: os.Geteuid() != 0}).unmount(0); err != nil {
			return fmt.Errorf("unmount %s, left by a dead daemon: %w", path, err)
		}
	}
}

// Abort ends the connection behind the mount at dir, if it is one of ours: whatever waits for its daemon gets an error.
// It is for a daemon that has been killed and cannot die, because one of its threads waits for its own mount.
func Abort(dir string) error {
	path, err := resolve(dir)
	if err != nil {
		return err
	}
	m, ok, err := mountAt(path)
	if err != nil || !ok || m.fstype != "fuse."+fsName {
		return err
	}
	// MNT_FORCE aborts the connection, and then unmounts only if nobody has files open.
	if err := unix.Unmount(path, unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("abort the mount %s: %w", path, err)
	}
	return nil
}

// isDead asks the mount at path something. A daemon that is stopped, or that was killed while one of its threads waited
// for its own mount, leaves the question open for ever; the goroutine that asks then lives until the mount is aborted.
func isDead(path string, timeout time.Duration) (bool, error) {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(path, &st)
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN), nil
	case <-timer.C:
		return false, fmt.Errorf("mount point %s belongs to a daemon that does not answer: end it, or if it is gone abort the mount with \"umount -f %s\"", path, path)
	}
}
