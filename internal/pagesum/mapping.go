package pagesum

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func (p *File) mapLocked(size int64) error {
	data, err := unix.Mmap(int(p.mu.f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap %d bytes: %w", size, err)
	}
	p.mu.data = data
	return nil
}

func (p *File) unmapLocked() error {
	if p.mu.data == nil {
		return nil
	}
	data := p.mu.data
	p.mu.data = nil
	if err := unix.Munmap(data); err != nil {
		return fmt.Errorf("munmap: %w", err)
	}
	return nil
}

// growLocked makes the file and its mapping at least need bytes long. The new
// mapping is made before the old one goes, so an error changes nothing.
func (p *File) growLocked(need int64) error {
	have := int64(len(p.mu.data))
	if need <= have {
		return nil
	}
	size, err := allocate(p.mu.f, have, max(need, have+min(have/2, 64*extentSize)))
	if err != nil {
		return err
	}
	old := p.mu.data
	if err := p.mapLocked(size); err != nil {
		return err
	}
	if err := unix.Munmap(old); err != nil {
		return fmt.Errorf("munmap: %w", err)
	}
	return nil
}

// allocate extends f from have bytes to at least need bytes, rounded up, and
// returns the new size. The space is really reserved: a store to a hole of a
// mapped file would be SIGBUS on a full disk.
func allocate(f *os.File, have, need int64) (int64, error) {
	unit := int64(dataOffset)
	if need > extentSize {
		unit = extentSize
	}
	size := (need + unit - 1) / unit * unit
	err := fallocate(f, have, size-have)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = writeZeroes(f, have, size)
	}
	if err != nil {
		return 0, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	return size, nil
}

// fillHoles reserves what a copy that skips zeroes left out of a file. Where
// there is no fallocate it does nothing: writing zeroes here would destroy sums.
func fillHoles(f *os.File, size int64) error {
	if err := fallocate(f, 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	return nil
}

func fallocate(f *os.File, offset, n int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), 0, offset, n); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// writeZeroes reserves space on a file system that has no fallocate.
func writeZeroes(f *os.File, from, to int64) error {
	block := make([]byte, min(to-from, extentSize))
	for from < to {
		n, err := f.WriteAt(block[:min(to-from, int64(len(block)))], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// zeroTail zeroes what is not zero in tail. It looks first: reserved space that
// nobody wrote reads as zero without a disk access, a store would dirty it.
func zeroTail(tail []byte) {
	for len(tail) > 0 {
		block := tail[:min(len(tail), dataOffset)]
		if !zero(block) {
			clear(block)
		}
		tail = tail[len(block):]
	}
}
