package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// leaseFile names the lease that the process with this data directory has, for the process after it:
// whoever has the directory's lock then knows that nobody counts on that lease any more.
const leaseFile = "lease"

// RememberLease notes the name that a lease service has for this node's lease.
func RememberLease(dataDir, name string) error {
	place, err := placeOf(dataDir)
	if err != nil {
		return err
	}
	if err := durable.Replace(vfs.OS(), filepath.Join(dataDir, leaseFile), []byte(name+"\n"+place+"\n")); err != nil {
		return fmt.Errorf("note the lease: %w", err)
	}
	return nil
}

// FormerLease returns what was noted last, by a process that had this very directory since this machine
// was started; empty if there is nothing. It may be used once the directory is locked.
//
// In a copy of the directory, on another machine or on this one, the same note says nothing: the
// original's process may be alive.
func FormerLease(dataDir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, leaseFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("the lease of the process before: %w", err)
	}
	place, err := placeOf(dataDir)
	if err != nil {
		return "", err
	}
	name, then, _ := strings.Cut(string(b), "\n")
	if strings.TrimSpace(then) != place {
		return "", nil
	}
	return name, nil
}

// placeOf tells a directory from its copies, between two starts of the machine.
func placeOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", dir, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return fmt.Sprintf("%s %d:%d", strings.TrimSpace(string(boot)), st.Dev, st.Ino), nil
}
