package ltxlog

import (
	"errors"
	"math/rand/v2"
	"syscall"

	"github.com/litefs/litefs/internal/vfs"
)

// badDisk fails: one operation that was chosen, or all of them from some point on.
type badDisk struct {
	mem  *vfs.Mem
	rnd  *rand.Rand
	note func(format string, args ...any)

	calm   bool // it does nothing worse than to stop
	whole  bool // nothing fails for now, nor counts
	ops    int  // so far
	stop   int  // after so many nothing works
	fail   int  // the number of the one that fails
	faults int  // since somebody set it to 0
	lost   bool // a sync that failed has lost what was written
}

func (d *badDisk) stopped() bool { return d.ops > d.stop }

// fsys returns the disk as a log sees it.
func (d *badDisk) fsys() vfs.FS { return vfs.NewFaulty(d.mem, d.before) }

func (d *badDisk) before(o vfs.Op) error {
	if d.whole {
		return nil
	}
	d.ops++
	if !d.stopped() && (d.calm || d.ops != d.fail) {
		return nil
	}
	d.faults++
	errno := []syscall.Errno{syscall.EIO, syscall.ENOSPC}[d.rnd.IntN(2)]
	if d.stopped() {
		if o.Kind == vfs.OpWrite && d.ops == d.stop+1 {
			return &vfs.ShortWrite{N: o.Size / 2, Err: errno}
		}
		return errno
	}
	d.note("    operation %d: %s %s: %v", d.ops, o.Kind, o.Path, errno)
	if d.rnd.IntN(4) == 0 {
		d.fail++ // and the next one
	}
	switch {
	case o.Kind == vfs.OpWrite:
		return &vfs.ShortWrite{N: o.Size * d.rnd.IntN(3) / 2, Err: errno}
	case o.Kind == vfs.OpSync && d.rnd.IntN(2) == 0:
		d.note("    what was written is lost")
		d.lost = true
		return errors.Join(errno, d.mem.Lose(o.Path))
	}
	return errno
}

// isFault says whether an error comes from the disk.
func isFault(err error) bool { return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) }
