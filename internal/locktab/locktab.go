// Package locktab asks the kernel which record locks are held on a file,
// without opening the file and without taking a lock: it reads /proc/locks.
//
// The kernel lists only locks whose holder this process can see: those of
// another process-id namespace are missing. So "held" is proof and "not held"
// is proof only about a holder that was seen before.
package locktab

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// File names a file as the lock table does.
type File struct {
	Major, Minor uint32
	Ino          uint64
}

// FileOf returns the name of an inode on the device dev (st_dev).
func FileOf(dev, ino uint64) File {
	return File{Major: unix.Major(dev), Minor: unix.Minor(dev), Ino: ino}
}

// WriteLocked reports whether somebody holds a write lock that covers the byte
// at off of the file.
func WriteLocked(file File, off uint64) (bool, error) {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return false, fmt.Errorf("read the lock table: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	held, err := writeLocked(f, file, off)
	if err != nil {
		return false, fmt.Errorf("read the lock table: %w", err)
	}
	return held, nil
}

// writeLocked reads a table of lines such as
//
//	1: POSIX  ADVISORY  WRITE 708 00:2f:1234 1073741825 1073741825
//
// proc(5), /proc/locks. A waiter has "->" before its type and is not a holder.
func writeLocked(r io.Reader, file File, off uint64) (bool, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) != 8 || f[3] != "WRITE" || f[1] == "FLOCK" {
			continue
		}
		if name, ok := parseFile(f[5]); !ok || name != file {
			continue
		}
		start, err := strconv.ParseUint(f[6], 10, 64)
		if err != nil {
			return false, fmt.Errorf("line %q: %w", sc.Text(), err)
		}
		if off < start {
			continue
		}
		if f[7] == "EOF" {
			return true, nil
		}
		end, err := strconv.ParseUint(f[7], 10, 64)
		if err != nil {
			return false, fmt.Errorf("line %q: %w", sc.Text(), err)
		}
		if off <= end {
			return true, nil
		}
	}
	return false, sc.Err()
}

// parseFile reads MAJOR:MINOR:INODE, the first two in hexadecimal.
func parseFile(s string) (File, bool) {
	p := strings.Split(s, ":")
	if len(p) != 3 {
		return File{}, false
	}
	major, err1 := strconv.ParseUint(p[0], 16, 32)
	minor, err2 := strconv.ParseUint(p[1], 16, 32)
	ino, err3 := strconv.ParseUint(p[2], 10, 64)
	return File{Major: uint32(major), Minor: uint32(minor), Ino: ino}, err1 == nil && err2 == nil && err3 == nil
}
