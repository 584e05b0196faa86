// Package cutdisk is a disk for tests of power cuts: a block device of the kernel, with a real file
// system on it, whose writes and flushes are recorded. Disk.Image gives what such a disk may hold when
// the power goes: everything up to the last flush, and of what came after it any part, sector by sector.
//
// The device is a loop device over a file that this process serves through FUSE without a cache: a
// write of the file system is a WRITE request here, and a flush of the disk (also the one that the
// kernel makes of a forced unit access) is an FSYNC. Whoever uses the file system must be another
// process than the one that serves the disk.
package cutdisk

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// sector is what a disk writes as a whole, in bytes.
const sector = 512

// head is what is written as a whole at the start: ext4's superblock is two sectors under one checksum, and ext4 does not
// mount a disk that has one of them.
const head = 4096

// Disk is the content of a disk and how it came to be. Its methods may be called from any goroutine.
type Disk struct {
	mu   sync.Mutex
	base []byte // before the first operation
	now  []byte
	ops  []op
}

// op is one operation: a write, or a flush when data is nil.
type op struct {
	off  int64
	data []byte
}

// New returns a disk that holds content, which it keeps.
func New(content []byte) *Disk {
	return &Disk{base: content, now: append([]byte(nil), content...)}
}

// Size is the size of the disk in bytes.
func (d *Disk) Size() int64 { return int64(len(d.base)) }

// ReadAt reads what was written last. Beyond the end of the disk there is nothing to be read.
func (d *Disk) ReadAt(b []byte, off int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off >= int64(len(d.now)) {
		return 0
	}
	return copy(b, d.now[off:])
}

// WriteAt writes, and records it. An error is a write beyond the end of the disk.
func (d *Disk) WriteAt(b []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+int64(len(b)) > int64(len(d.now)) {
		return fmt.Errorf("write of %d bytes at %d of a disk of %d", len(b), off, len(d.now))
	}
	copy(d.now[off:], b)
	d.ops = append(d.ops, op{off: off, data: append([]byte{}, b...)})
	return nil
}

// Flush records that everything written so far is durable.
func (d *Disk) Flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops = append(d.ops, op{})
}

// Now is a moment: the number of operations so far.
func (d *Disk) Now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ops)
}

// Image is what the disk may hold when the power goes at a moment. Writes after the last flush before it
// are lost or kept in one of four ways, which rng chooses: all kept, all lost, each by chance, or each
// sector of each by chance.
func (d *Disk) Image(at int, rng *rand.Rand) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	img := append([]byte(nil), d.base...)
	flushed := at
	for flushed > 0 && d.ops[flushed-1].data != nil {
		flushed--
	}
	for _, o := range d.ops[:flushed] {
		copy(img[o.off:], o.data)
	}
	way, chance := rng.IntN(4), rng.Float64()
	for _, o := range d.ops[flushed:at] {
		switch way {
		case 0:
			copy(img[o.off:], o.data)
		case 1:
		case 2:
			if rng.Float64() < chance {
				copy(img[o.off:], o.data)
			}
		case 3:
			for from := 0; from < len(o.data); {
				to := min(from+sector, len(o.data))
				if rest := head - o.off - int64(from); rest > 0 {
					to = min(from+int(rest), len(o.data))
				}
				if rng.Float64() < chance {
					copy(img[o.off+int64(from):], o.data[from:to])
				}
				from = to
			}
		}
	}
	return img
}
