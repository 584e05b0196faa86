package litefs

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// formatMarker is the content of <data>/FORMAT. The log's files do not say
// which version of LTX they are, so the directory does.
const formatMarker = "litefs 2\nltx 3\n"

// lockPatience is how long a start waits for the previous daemon to let go of
// the data directory: a restart may overlap the end of the one before.
const lockPatience = time.Second

// ErrDataDir is matched by the errors of a data directory that this program
// must not use: another one's, or one of another format. It is left untouched.
var ErrDataDir = errors.New("unusable data directory")

// dataDirError matches ErrDataDir and reads as its own line.
type dataDirError struct{ msg string }

func (e *dataDirError) Error() string        { return e.msg }
func (e *dataDirError) Is(target error) bool { return target == ErrDataDir }

func badDataDir(format string, args ...any) error {
	return &dataDirError{fmt.Sprintf(format, args...)}
}

// MarkDataDir makes dir, whose files/ may hold databases, a data directory of this program. A store that opens
// it puts them on record.
func MarkDataDir(dir string) error {
	if err := durable.Replace(vfs.OS(), filepath.Join(dir, "FORMAT"), []byte(formatMarker)); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// openDir prepares the data directory and takes its lock.
func (s *Store) openDir() error {
	fresh, err := s.checkFormat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.path, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := s.lockDir(); err != nil {
		return err
	}
	if fresh {
		if err := durable.Replace(vfs.OS(), filepath.Join(s.path, "FORMAT"), []byte(formatMarker)); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	s.keepApart(s.path)
	for _, name := range []string{"dbs", "aside"} {
		if err := os.MkdirAll(filepath.Join(s.path, name), 0o700); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	s.keepApart(filepath.Join(s.path, "dbs"))
	if err := os.MkdirAll(s.FilesDir(), 0o755); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := s.openIdentity(); err != nil {
		return err
	}
	if s.bootID != "" {
		return nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read the boot id: %w", err)
	}
	s.bootID = strings.TrimSpace(string(boot))
	return nil
}

// lockDir keeps a second daemon out of the data directory.
func (s *Store) lockDir() error {
	if s.lockFile != nil {
		return nil // held for us since the process before
	}
	f, err := os.OpenFile(filepath.Join(s.path, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", s.path, err)
	}
	deadline := time.Now().Add(lockPatience)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			s.lockFile = f
			return errors.Join(f.Truncate(0), s.writePID(f))
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("data directory %s is in use by another litefs (pid %d): stop that one first", s.path, lockOwner(s.path)), f.Close())
		}
		<-time.After(20 * time.Millisecond) // flock has no wake-up with a deadline
	}
}

// keepApart has the file system put the directories below dir apart from each
// other (the "top of a hierarchy" flag, chattr +T), where it knows how. SQLite
// removes journals all the time, and ext4 without a journal looks at every
// inode that was freed a moment ago in a group of blocks before it makes a file
// there: without this, a new log entry took five times as long.
func (s *Store) keepApart(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		s.Logger.Debug("directories are not kept apart", "dir", dir, "error", err)
		return
	}
	defer f.Close()           //nolint:errcheck // read only
	const topDir = 0x00020000 // FS_TOPDIR_FL
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|topDir))
	}
	if err != nil {
		s.Logger.Debug("directories are not kept apart", "dir", dir, "error", err)
	}
}

func (s *Store) writePID(f *os.File) error {
	pid := s.OwnerPID
	if pid == 0 {
		pid = os.Getpid()
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(pid)+"\n"), 0)
	return err
}

// lockOwner returns the process that took the data directory's lock last.
func lockOwner(path string) int {
	b, err := os.ReadFile(filepath.Join(path, "LOCK"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}

// DyingOwner returns the process that holds the data directory, if it has been
// killed and is not gone. A daemon that was killed while one of its threads
// waited for its own mount stays like that, with the lock, until the mount is
// aborted.
func DyingOwner(path string) (pid int, dying bool) {
	if pid = lockOwner(path); pid == 0 || pid == os.Getpid() {
		return 0, false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	const sigkill = 1 << (unix.SIGKILL - 1)
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			dying = dying || strings.HasPrefix(value, "Z")
		case "SigPnd", "ShdPnd":
			mask, err := strconv.ParseUint(value, 16, 64)
			dying = dying || err == nil && mask&sigkill != 0
		}
	}
	return pid, dying
}

// checkFormat refuses a directory that another program, or another version of
// this one, has written, before anything in it is touched. fresh means that it
// is empty or not there.
func (s *Store) checkFormat() (fresh bool, err error) {
	b, err := os.ReadFile(filepath.Join(s.path, "FORMAT"))
	switch {
	case err == nil && (string(b) == formatMarker || string(b) == sealedMarker):
		return false, nil
	case err == nil:
		return false, badDataDir("data directory %s has format %q, this litefs writes %q: use the version that made it, or another directory", s.path, firstLine(string(b)), firstLine(formatMarker))
	case !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("data directory: %w", err)
	}
	ents, err := os.ReadDir(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("data directory: %w", err)
	}
	for _, ent := range ents {
		switch ent.Name() {
		case "LOCK", "FORMAT.tmp":
			// a first start that was cut off
		case "litefs-0.5":
			return false, badDataDir("data directory %s is half taken over from LiteFS 0.x: run litefs adopt %s again", s.path, s.path)
		case "dbs", "clusterid":
			return false, badDataDir("data directory %s was written by LiteFS 0.x: litefs adopt %s takes its databases over, and -dry-run says what it would do", s.path, s.path)
		default:
			return false, badDataDir("data directory %s holds %s but no FORMAT: it is not a litefs data directory; choose an empty one", s.path, ent.Name())
		}
	}
	return true, nil
}

// openIdentity reads the node's and the cluster's id; the node's is drawn once.
func (s *Store) openIdentity() error {
	path := filepath.Join(s.path, "node-id")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = randomHex(8); err == nil {
			err = durable.Replace(vfs.OS(), path, b)
		}
	}
	if err != nil {
		return fmt.Errorf("node id: %w", err)
	}
	s.nodeID = strings.TrimSpace(string(b))
	s.clusterID, err = ReadClusterID(s.path)
	return err
}

// ReadClusterID returns the id of the cluster that a data directory belongs to;
// empty if it belongs to none yet.
func ReadClusterID(dataDir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "cluster-id"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cluster of the data directory: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// setClusterID records the cluster that this directory belongs to from now on.
func (s *Store) setClusterID(id string) error {
	if err := durable.Replace(vfs.OS(), filepath.Join(s.path, "cluster-id"), []byte(id+"\n")); err != nil {
		return fmt.Errorf("cluster id: %w", err)
	}
	s.mu.Lock()
	s.clusterID = id
	s.mu.Unlock()
	return nil
}

// readRole returns who wrote the tree last. Recovery needs to know: the frames
// in a replica's write-ahead log are copies of log entries, those in a
// primary's may be news.
func (s *Store) readRole() (Role, error) {
	b, err := os.ReadFile(filepath.Join(s.path, "role"))
	if errors.Is(err, fs.ErrNotExist) {
		return RoleNone, nil
	}
	if err != nil {
		return RoleNone, fmt.Errorf("role of the last run: %w", err)
	}
	switch v := strings.TrimSpace(string(b)); v {
	case "primary":
		return RolePrimary, nil
	case "replica":
		return RoleReplica, nil
	default:
		return RoleNone, fmt.Errorf("role of the last run: got %q, want primary or replica", v)
	}
}

// writeRole makes the role durable before the first byte is written in it.
func (s *Store) writeRole(r Role) error {
	s.roleFile.Lock()
	defer s.roleFile.Unlock()
	if err := durable.Replace(vfs.OS(), filepath.Join(s.path, "role"), []byte(r.String()+"\n")); err != nil {
		return fmt.Errorf("record the role: %w", err)
	}
	s.recorded.Store(int32(r))
	return nil
}

// randomHex returns n random bytes as hex digits.
func randomHex(n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	return []byte(hex.EncodeToString(b)), nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
