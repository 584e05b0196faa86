package ltxlog

import (
	"fmt"
	"io"

	"github.com/superfly/ltx"
)

// Replay rebuilds the database as of transaction upto by writing pages to w, which must be empty.
// It returns the database's pages and rolling checksum. Pages that an entry added to the database
// without writing them are zero. w is not truncated: when the database shrank, w is longer than
// pageCount pages.
//
// Each entry is verified before a page of it is written, and after each the checksum of the
// database must be the entry's Post (ErrCorrupt), which costs 8 bytes of memory a page. upto must
// be the Max of an entry. ErrNoSnapshot: the log does not reach back to a snapshot.
func (l *Log) Replay(w io.WriterAt, upto uint64) (pageCount uint32, sum uint64, err error) {
	entries := l.Entries()
	if len(entries) == 0 || !entries[0].IsSnapshot() {
		return 0, 0, fmt.Errorf("replay transaction log: %w", ErrNoSnapshot)
	}
	if last, ok := find(entries, upto); !ok || last.Max != upto {
		return 0, 0, fmt.Errorf("replay transaction log: %w: none ends with transaction %016x", ErrNotFound, upto)
	}
	db := replay{w: w}
	for _, e := range entries {
		if e.Min > upto {
			break
		}
		if err := db.apply(l, e); err != nil {
			return 0, 0, fmt.Errorf("replay %s: %w", entryName(e.Min, e.Max), err)
		}
	}
	return uint32(len(db.sums)), flag | db.sum, nil
}

// replay is a database being rebuilt.
type replay struct {
	w    io.WriterAt
	sums []uint64 // checksum of page i+1; 0 for the lock page
	sum  uint64   // XOR of sums, bit 63 in either state
}

func (db *replay) apply(l *Log, e Entry) error {
	before := uint32(len(db.sums))
	db.resize(e.Commit)
	next := before + 1 // first added page not yet written
	err := l.Pages(e, func(pgno uint32, data []byte) error {
		if pgno > before {
			if err := db.zero(e, next, pgno); err != nil {
				return err
			}
			next = pgno + 1
		}
		return db.put(e, pgno, data)
	})
	if err != nil {
		return err
	}
	if err := db.zero(e, next, e.Commit+1); err != nil {
		return err
	}
	if got := flag | db.sum; got != e.Post {
		return corrupt("checksum of the database is %016x, want %016x", got, e.Post)
	}
	return nil
}

func (db *replay) resize(pages uint32) {
	for uint32(len(db.sums)) > pages {
		last := len(db.sums) - 1
		db.sum ^= db.sums[last]
		db.sums = db.sums[:last]
	}
	if n := int(pages) - len(db.sums); n > 0 {
		db.sums = append(db.sums, make([]uint64, n)...)
	}
}

func (db *replay) put(e Entry, pgno uint32, data []byte) error {
	sum := pageSum(pgno, data)
	db.sum ^= db.sums[pgno-1] ^ sum
	db.sums[pgno-1] = sum
	_, err := db.w.WriteAt(data, int64(pgno-1)*int64(e.PageSize))
	return err
}

// zero writes pages [from, to) as zero. The lock page is written too, as SQLite leaves it, but it
// has no checksum.
func (db *replay) zero(e Entry, from, to uint32) error {
	if from >= to {
		return nil
	}
	page := make([]byte, e.PageSize)
	for pgno := from; pgno < to; pgno++ {
		if pgno == ltx.LockPgno(e.PageSize) {
			if _, err := db.w.WriteAt(page, int64(pgno-1)*int64(e.PageSize)); err != nil {
				return err
			}
			continue
		}
		if err := db.put(e, pgno, page); err != nil {
			return err
		}
	}
	return nil
}
