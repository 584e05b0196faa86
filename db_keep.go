package litefs

import (
	"slices"

	"github.com/litefs/litefs/internal/peer"
)

// maxPageCopies is how many bytes of pages are kept between two uses of them, each
// time. The pages of a small transaction are read, or decompressed, once; those of
// a large one twice, and take no memory.
const maxPageCopies = 256 << 10

// pageCopies are the pages of one transaction, in order. It comes from the store's
// pool: with its own, each of a thousand databases would hold on to one.
type pageCopies struct {
	data  []byte
	spilt bool // some did not fit: there are none
}

// keptPages returns an empty one. It goes back to Store.pageCopies.
func (s *Store) keptPages() *pageCopies {
	if k, ok := s.pageCopies.Get().(*pageCopies); ok {
		k.reset()
		return k
	}
	return &pageCopies{}
}

func (k *pageCopies) reset() { k.data, k.spilt = k.data[:0], false }

func (k *pageCopies) add(data []byte) {
	if k.spilt || len(k.data)+len(data) > maxPageCopies {
		k.data, k.spilt = k.data[:0], true
		return
	}
	k.data = append(k.data, data...)
}

// page returns the ith page.
func (k *pageCopies) page(i int, pageSize uint32) []byte {
	return k.data[i*int(pageSize):][:pageSize]
}

// each gives the pages, whose numbers are pgnos; nil: there are none.
func (k *pageCopies) each(pgnos []uint32, pageSize uint32) peer.Pages {
	if k.spilt || len(k.data) != len(pgnos)*int(pageSize) {
		return nil
	}
	return func(yield func(pgno uint32, data []byte) error) error {
		for i, pgno := range pgnos {
			if err := yield(pgno, k.page(i, pageSize)); err != nil {
				return err
			}
		}
		return nil
	}
}

// readOnce reads the pages of c into kept, if they fit, and lets c.read give them
// from there: they are hashed, and then encoded.
func (c *change) readOnce(kept *pageCopies) error {
	if len(c.pgnos)*int(c.pageSize) > maxPageCopies {
		return nil
	}
	kept.data = slices.Grow(kept.data[:0], len(c.pgnos)*int(c.pageSize))[:len(c.pgnos)*int(c.pageSize)]
	for i, pgno := range c.pgnos {
		if err := c.read(pgno, kept.page(i, c.pageSize)); err != nil {
			return err
		}
	}
	pgnos, pageSize := c.pgnos, c.pageSize
	read := c.read
	c.read = func(pgno uint32, b []byte) error {
		i, ok := slices.BinarySearch(pgnos, pgno)
		if !ok {
			return read(pgno, b)
		}
		copy(b, kept.page(i, pageSize))
		return nil
	}
	return nil
}
