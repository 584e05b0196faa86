package litefs

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// noteWrite remembers that bytes of the database file were written through the
// mount. While a write-ahead log is in use such writes are checkpoints, which
// change nothing that an application sees.
func (db *DB) noteWrite(off int64, n int) {
	db.mu.Lock()
	defer db.mu.Unlock()
	ps := int64(db.sums.PageSize())
	if ps == 0 {
		db.allDirty = true
		return
	}
	if db.walInUse() {
		return
	}
	for pgno := off/ps + 1; pgno <= (off+int64(n)-1)/ps+1; pgno++ {
		db.dirty[uint32(pgno)] = struct{}{}
	}
	db.noteUnjournaled()
}

// noteUnseen remembers that pages may have changed and nobody knows which.
func (db *DB) noteUnseen() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.allDirty = true
}

// journalEnds captures the transaction whose rollback journal is about to be
// removed, truncated or zeroed, which is its commit or the end of its
// rollback; after a rollback the pages are what they were and nothing is
// logged. An error refuses the commit: the journal stays, and SQLite rolls the
// transaction back. member: see Store.journalEnds.
func (db *DB) journalEnds(member bool) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer != nil {
		return db.settleSync()
	}
	if level := db.Level(); level.Gated() || db.undecided != nil {
		return db.promiseJournal(level, member)
	}
	return errors.Join(db.captureFile(), db.settleSync())
}

// captureFile logs what changed in the database file. db.mu is held.
func (db *DB) captureFile() error {
	if err := db.captureWAL(false); err != nil {
		return err
	}
	if db.allDirty || db.store.writesUnseen(db.Name()) {
		// A connection that switched from WAL on a passthrough inode: its
		// journal does not list every page it writes (reused free pages are not
		// journaled), so only a comparison finds them all.
		return db.compareSettled()
	}
	if db.leftWAL {
		changed, err := db.firstPageChanged()
		if err != nil {
			return err
		}
		if changed {
			return db.compareSettled()
		}
	}
	if len(db.dirty) == 0 {
		return nil
	}
	f, err := openRead(db.DatabasePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	hdr, size, err := readHeader(f)
	if err != nil {
		return db.headerGone(size, err)
	}
	if hdr.PageSize != db.sums.PageSize() || db.walInUse() {
		return db.compareSettled()
	}
	count := hdr.Pages(size)
	c := change{commits: 1, pageSize: hdr.PageSize, count: count, durable: true, confirm: db.settleSync}
	c.read = func(pgno uint32, b []byte) error { return readFilePage(f, pgno, b) }
	for pgno := range db.dirty {
		if pgno <= count && pgno != sqlitefile.LockPgno(hdr.PageSize) {
			c.pgnos = append(c.pgnos, pgno)
		}
	}
	// Pages that the database grew by and nobody wrote are zeros in the file.
	for pgno := db.sums.Count() + 1; pgno <= count; pgno++ {
		if _, ok := db.dirty[pgno]; !ok && pgno != sqlitefile.LockPgno(hdr.PageSize) {
			c.pgnos = append(c.pgnos, pgno)
		}
	}
	slices.Sort(c.pgnos)
	if err := db.keepChanged(&c); err != nil {
		return err
	}
	if len(c.pgnos) > 0 || count != db.sums.Count() {
		if err := db.appendChange(c); err != nil {
			return err
		}
	}
	clear(db.dirty)
	return nil
}

// compareSettled is compareAll after the sync that the journal's end waits for: an entry that holds many pages is not
// written in vain.
func (db *DB) compareSettled() error {
	if err := db.settleSync(); err != nil {
		return err
	}
	return db.compareAll(1)
}

// firstPageChanged reports whether page 1 of the file is not the one on record.
// Every transaction that is not in a write-ahead log changes it: it has the
// change counter, and the journal mode (SQLite: pager_incr_changecounter).
func (db *DB) firstPageChanged() (bool, error) {
	f, err := os.Open(db.DatabasePath())
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // read only
	if db.sums.PageSize() == 0 {
		return true, nil
	}
	b := db.page(db.sums.PageSize())
	if err := readFilePage(f, 1, b); err != nil {
		return false, err
	}
	return pagesum.Page(1, b) != db.sums.Get(1), nil
}

// keepChanged takes the pages out of c whose bytes are those on record.
func (db *DB) keepChanged(c *change) error {
	sums, err := db.hashPages(*c)
	if err != nil {
		return err
	}
	n := 0
	for i, pgno := range c.pgnos {
		if sums[i] != db.sums.Get(pgno) {
			c.pgnos[n], sums[n] = pgno, sums[i]
			n++
		}
	}
	c.pgnos, c.sums = c.pgnos[:n], sums[:n]
	return nil
}

// headerGone says what a database file without a header means: an empty file
// is a database that was rolled back to nothing or truncated; other bytes are
// no database any more, or one that its application encrypts.
func (db *DB) headerGone(size int64, err error) error {
	if !errors.Is(err, sqlitefile.ErrNotDatabase) {
		return err
	}
	db.log().Warn("the file has no database header any more: its changes are not captured", "size", size)
	return nil
}

// stillDatabase returns ErrNotDatabase when the file was emptied or overwritten by
// something else, with nothing in a write-ahead log. db.mu is held.
func (db *DB) stillDatabase() error {
	if db.walInUse() {
		return nil
	}
	f, err := os.Open(db.DatabasePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it will be dropped
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	_, _, err = readHeader(f)
	return err
}

// lastClose captures what was written without a transaction that we could
// see: a copy into the mount, or a database with no journal. ErrNotDatabase means
// that the file is none any more.
func (db *DB) lastClose() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer != nil {
		return nil
	}
	if journalHot(db.JournalPath()) {
		return nil // SQLite plays it back at the next open
	}
	if err := db.captureWAL(false); err != nil {
		return err
	}
	if err := db.stillDatabase(); err != nil {
		return err
	}
	if len(db.dirty) == 0 && !db.walInUse() {
		// A file in WAL mode that is written by something else than SQLite,
		// through a handle with passthrough, leaves no other trace.
		changed, err := db.firstPageChanged()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it will be dropped
		}
		if err != nil {
			return err
		}
		db.allDirty = db.allDirty || changed
	}
	if err := db.captureFile(); err != nil {
		return err
	}
	db.leftWAL = false
	return nil
}
