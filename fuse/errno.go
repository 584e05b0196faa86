package fuse

import (
	"errors"
	"sync"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// maxErrno is one above the largest errno the kernel takes in a reply.
const maxErrno = 512

// status translates an error of a system call. ENOSYS would switch the operation off for the whole mount (FSYNC would
// then succeed without syncing anything), so it is never passed on from below.
func status(err error) gofuse.Status {
	if err == nil {
		return gofuse.OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno > 0 && errno < maxErrno && errno != syscall.ENOSYS {
		return gofuse.Status(errno)
	}
	return gofuse.EIO
}

// complaints logs what applications can only see as EIO, once for each operation, path and message.
type complaints struct {
	mu   sync.Mutex
	said map[string]bool
}

// maxComplaints bounds the memory of what was said; when it is reached, saying starts afresh.
const maxComplaints = 1000

func (c *complaints) first(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said[key] {
		return false
	}
	if c.said == nil || len(c.said) >= maxComplaints {
		c.said = make(map[string]bool)
	}
	c.said[key] = true
	return true
}

// refused translates an error of the Backend.
func (fs *loopback) refused(op, path string, err error) gofuse.Status {
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) && fs.complaints.first(op+"\x00"+path+"\x00"+err.Error()) {
		fs.logger.Error("operation refused", "op", op, "path", path, "err", err)
	}
	return status(err)
}
