package pagesum

import (
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/superfly/ltx"
	"golang.org/x/sync/errgroup"
)

// chunkBytes is what a worker reads and hashes at a time; with the number of
// workers it bounds the memory of Compute.
const chunkBytes = 1 << 20

// Compute hashes pages 1..count of a database file, workers at a time (0 = one
// a processor), and gives each sum to fn, in ascending order within a chunk but
// with the chunks in any order, never from two goroutines at once. The lock
// page is skipped. A page that cannot be read in full is an error; sums given
// to fn before it are right.
func Compute(r io.ReaderAt, pageSize, count uint32, workers int, fn func(pgno uint32, sum uint64)) error {
	if count == 0 {
		return nil
	}
	if pageSize == 0 {
		return fmt.Errorf("compute page checksums: page size 0 with %d pages", count)
	}
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	perChunk := max(1, chunkBytes/pageSize)
	var (
		mu   sync.Mutex // held while fn runs and to take the next chunk
		next = uint64(1)
	)
	var g errgroup.Group
	failed := make(chan struct{})
	var once sync.Once
	for range min(uint64(workers), (uint64(count)+uint64(perChunk)-1)/uint64(perChunk)) {
		g.Go(func() error {
			c := newChunk(pageSize, perChunk)
			for {
				select {
				case <-failed:
					return nil
				default:
				}
				mu.Lock()
				first := next
				next += uint64(perChunk)
				mu.Unlock()
				if first > uint64(count) {
					return nil
				}
				if err := c.hash(r, uint32(first), uint32(min(uint64(perChunk), uint64(count)-first+1))); err != nil {
					once.Do(func() { close(failed) })
					return err
				}
				mu.Lock()
				c.each(fn)
				mu.Unlock()
			}
		})
	}
	return g.Wait()
}

// chunk is a run of pages in the hands of one worker.
type chunk struct {
	pageSize uint32
	lockPgno uint32
	first    uint32
	sums     []uint64
	buf      []byte
}

func newChunk(pageSize, pages uint32) *chunk {
	return &chunk{
		pageSize: pageSize,
		lockPgno: ltx.LockPgno(pageSize),
		sums:     make([]uint64, 0, pages),
		buf:      make([]byte, pages*pageSize),
	}
}

func (c *chunk) hash(r io.ReaderAt, first, n uint32) error {
	c.first, c.sums = first, c.sums[:0]
	b := c.buf[:n*c.pageSize]
	got, err := r.ReadAt(b, int64(first-1)*int64(c.pageSize))
	if got < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("compute page checksums: read page %d: %w", first+uint32(got)/c.pageSize, err)
	}
	for i := range n {
		var sum uint64
		if pgno := first + i; pgno != c.lockPgno {
			sum = Page(pgno, b[i*c.pageSize:(i+1)*c.pageSize])
		}
		c.sums = append(c.sums, sum)
	}
	return nil
}

func (c *chunk) each(fn func(pgno uint32, sum uint64)) {
	for i, sum := range c.sums {
		if pgno := c.first + uint32(i); pgno != c.lockPgno {
			fn(pgno, sum)
		}
	}
}
