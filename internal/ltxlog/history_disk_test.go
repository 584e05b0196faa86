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
	sync   bool // the next sync fails
	faults int  // since somebody set it to 0
	lost   bool // a sync that failed has lost what was written

	cuts []*vfs.Mem // what power cuts would have left in the middle, since somebody took them
}

func (d *badDisk) stopped() bool { return d.ops > d.stop }

// arm lets an operation fail soon.
func (d *badDisk) arm() {
	if d.rnd.IntN(2) == 0 {
		d.sync = true
	} else {
		d.fail = d.ops + 1 + d.rnd.IntN(12)
	}
}

func (d *badDisk) before(o vfs.Op) error {
	if d.whole {
		return nil
	}
	d.ops++
	if d.rnd.IntN(40) == 0 && !d.stopped() {
		d.cuts = append(d.cuts, d.mem.Cut(d.rnd))
		d.note("    power cut before operation %d", d.ops)
	}
	fails := !d.calm && (d.ops == d.fail || d.sync && o.Kind == vfs.OpSync)
	if !d.stopped() && !fails {
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
	d.sync = false
	if d.rnd.IntN(4) == 0 {
		d.fail = d.ops + 1
	}
	switch {
	case o.Kind == vfs.OpWrite:
		return &vfs.ShortWrite{N: o.Size * d.rnd.IntN(3) / 2, Err: errno}
	case o.Kind == vfs.OpSync && d.rnd.IntN(2) == 0:
		return errors.Join(errno, d.lose(o.Path))
	}
	return errno
}

// lose is a sync that fails with loss of what was written, which may be in the cache for a while.
func (d *badDisk) lose(path string) error {
	d.lost = true
	err := d.mem.LoseSync(path)
	if d.rnd.IntN(2) == 0 {
		d.mem.Evict()
	}
	d.note("    what was written is lost")
	return err
}

// isFault says whether an error comes from the disk.
func isFault(err error) bool { return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) }
