package fuse

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Sync is what an fsync(2) of a file takes.
type Sync int

const (
	// SyncAll makes everything durable that the application asks for.
	SyncAll Sync = iota
	// SyncData makes content and size durable, as fdatasync(2): nobody will ask for the file's times after a crash. On
	// ext4 that spares a commit of the file system's journal when the file has not grown.
	SyncData
	// SyncBehind leaves it to the Backend, which has begun it, or does without.
	SyncBehind
)

// Mode says who moves the bytes of a file. It is fixed at the first open of an inode and holds until its last close:
// the kernel refuses (EIO) two opens of one inode that disagree.
type Mode int

const (
	// Cached keeps the file in the kernel's page cache: reads of cached pages cost no request, each write is one.
	Cached Mode = iota
	// Direct sends every read and write to the daemon.
	Direct
	// Passthrough lets the kernel read, write and map the file itself. No request arrives for them: writes are not seen.
	Passthrough
)

func (m Mode) String() string {
	switch m {
	case Cached:
		return "cached"
	case Direct:
		return "direct"
	case Passthrough:
		return "passthrough"
	}
	return "mode " + strconv.Itoa(int(m))
}

// Caller is the thread a request comes from. PID 0: the kernel itself (write-back of a mapping, a release).
type Caller struct{ PID uint32 }

// Own reports whether the request comes from a thread of this process, as when the daemon opens a file through its
// own mount.
func (c Caller) Own() bool {
	if c.PID == 0 {
		return false
	}
	// FUSE sends the id of the thread, not of the process. No signal is sent: 0 only asks whether the thread is there.
	return unix.Tgkill(os.Getpid(), int(c.PID), 0) == nil
}

// ErrTaken is what Writing returns when it has taken the bytes: they are not written, and the caller is told that they
// were.
var ErrTaken = errors.New("the write was taken")

// Backend decides what requests mean. Paths are relative to Options.Root ("app.db", "sub/app.db").
//
// Methods are called from many goroutines at once and may wait: only the request itself waits with them. An error
// refuses the operation before anything has changed; a syscall.Errno reaches the application as it is, any other error
// as EIO, with a log line. An inode that has lost its last name has no path: it is opened, written and truncated
// without asking.
//
// A method that this process causes by opening a file through its own mount (Caller.Own) must not wait for a lock that
// the opening goroutine holds.
type Backend interface {
	// Opening is called before open(2) of an existing file. flags are those of open(2). first: no handle is open on the
	// inode, and the answer decides its mode; otherwise the mode in force is kept and the answer ignored.
	// Of two first opens at the same time both are asked, and the first answer holds.
	Opening(c Caller, path string, flags uint32, first bool) (Mode, error)
	// Creating is called before a new regular file is made. Its mode is asked by Opening, with first.
	Creating(c Caller, path string) error
	// Opened is called when a handle is open, before the application has it. path is "" when the file has lost its name
	// meanwhile: each Opened has its Released, so that they can be counted.
	// mode is the one in force, which may be Cached where Passthrough was asked for.
	Opened(path string, mode Mode, writable, created bool)
	// Released is called after a handle was closed, and after a file that nobody has open was truncated by its path;
	// last: no handle is left on the inode. path is the one the file has now,
	// "" when it has none. close(2) does not wait for it. Opened and Released of one inode come one at a time, in order,
	// except that Opened for a handle of this process does not wait for a Released in progress.
	Released(path string, writable bool, last bool)
	// Writing is called before a WRITE that reaches the daemon touches the file. data is valid until it returns.
	// Never called in Passthrough. ErrTaken: see there.
	Writing(c Caller, path string, off int64, data []byte) error
	// Wrote is called after n bytes were written at off.
	Wrote(path string, off int64, n int)
	// Syncing is called before fsync(2) of a file and says what it takes.
	Syncing(c Caller, path string) Sync
	// Truncating is called before the size of a file is set, or content is removed by fallocate(2) (then size is the
	// offset from which content changes). O_TRUNC and ftruncate(2) come here, in every mode.
	Truncating(c Caller, path string, size int64) error
	// Unlinking is called before a name of a file (not a directory) is removed, Unlinked with the outcome.
	Unlinking(c Caller, path string) error
	Unlinked(path string, err error)
	// Renaming is called before a rename of a file or a directory (then everything below moves), which may replace
	// newPath; Renamed with the outcome.
	Renaming(c Caller, oldPath, newPath string) error
	Renamed(oldPath, newPath string, err error)
	// Virtual gives the content of a synthetic read-only file at a path that does not exist under Root. It is called
	// for every lookup of a missing name and must be quick.
	Virtual(path string) ([]byte, bool)
	// Virtuals names the synthetic files in a directory ("" is the root), for its listing.
	Virtuals(dir string) []string
	// Volatile reports whether a virtual file may appear at a path that has none now. The kernel remembers any other
	// missing name for an hour.
	Volatile(path string) bool
}
