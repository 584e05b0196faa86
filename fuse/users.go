package fuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// usersOf lists the processes that have a file of a dead mount open or mapped, or have their working or root directory
// there, as "pid 12 (sqlite3)". Files of such a mount cannot be looked at (ENOTCONN), so they are told by the mount id
// of the descriptor, the device number of the mapping, and the path of the link.
func usersOf(m mountEntry, dir string) ([]string, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for users of %s: %w", dir, err)
	}
	var users []string
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		if proc := filepath.Join("/proc", p.Name()); uses(proc, m, dir) {
			name, err := os.ReadFile(filepath.Join(proc, "comm"))
			if errors.Is(err, os.ErrNotExist) {
				continue // it has ended
			}
			users = append(users, fmt.Sprintf("pid %s (%s)", p.Name(), strings.TrimSpace(string(name))))
		}
	}
	return users, nil
}

// uses reports whether the process of a /proc directory holds something of the mount. What cannot be read belongs to
// another user or to a process that has just ended; the unmount itself still answers EBUSY for the former.
func uses(proc string, m mountEntry, dir string) bool {
	for _, link := range []string{"cwd", "root"} {
		if target, err := os.Readlink(filepath.Join(proc, link)); err == nil && within(target, dir) {
			return true
		}
	}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd"))
	for _, f := range fds {
		// What is no file of a file system is passed over: to read the fdinfo of an epoll takes its lock, which a process
		// that hangs may hold for ever.
		target, err := os.Readlink(filepath.Join(proc, "fd", f.Name()))
		if err != nil || !strings.HasPrefix(target, "/") {
			continue
		}
		info, err := os.ReadFile(filepath.Join(proc, "fdinfo", f.Name()))
		if err == nil && mountID(string(info)) == m.id {
			return true
		}
	}
	maps, _ := os.ReadFile(filepath.Join(proc, "maps"))
	for line := range strings.Lines(string(maps)) {
		// address perms offset dev inode path; dev in hexadecimal
		f := strings.Fields(line)
		if len(f) >= 6 && (sameDevice(f[3], m.dev) || within(f[5], dir)) {
			return true
		}
	}
	return false
}

func mountID(fdinfo string) string {
	for line := range strings.Lines(fdinfo) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// sameDevice compares "major:minor" in hexadecimal (maps) with one in decimal (mountinfo).
func sameDevice(hexDev, dev string) bool {
	var a, b, c, d uint32
	if _, err := fmt.Sscanf(hexDev, "%x:%x", &a, &b); err != nil {
		return false
	}
	if _, err := fmt.Sscanf(dev, "%d:%d", &c, &d); err != nil {
		return false
	}
	return a == c && b == d
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}
