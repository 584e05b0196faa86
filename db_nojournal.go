package litefs

import (
	"os"
	"syscall"

	"github.com/litefs/litefs/internal/locktab"
	"github.com/litefs/litefs/sqlitefile"
)

// A database with journal_mode MEMORY or OFF commits by letting go of its
// locks, which nobody tells. So after a write that comes with RESERVED held and
// no journal open, the capture loop asks the kernel's lock table whether
// RESERVED is free again, and then logs the pages noted. No lock is asked for:
// the same application's COMMIT would be busy.
//
// While that capture reads, the next WRITE waits for db.mu in Store.Writing. A
// write that is already past it comes from a holder of RESERVED, which the
// capture sees. So pages are read only between two transactions.
//
// A file that is written without SQLite's locks (cp) is captured at its last
// close: there is no moment before at which it is known to be whole.

// noteUnjournaled decides, at a write with no journal open, whether SQLite is
// writing. db.mu is held.
func (db *DB) noteUnjournaled() {
	if db.store.isOpen(db.Name() + "-journal") {
		return
	}
	if !db.unjournaled.Load() {
		held, err := db.reserved()
		if err != nil {
			db.log().Debug("cannot read the lock table: a database without a journal is captured at its last close", "error", err)
		}
		if !held {
			return
		}
		db.unjournaled.Store(true)
	}
	db.poke()
}

// reserved reports whether a connection holds RESERVED on the database.
func (db *DB) reserved() (bool, error) {
	dev := db.store.mountDev.Load()
	fi, err := os.Stat(db.DatabasePath())
	if err != nil || dev == 0 {
		return false, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return false, nil
	}
	return locktab.WriteLocked(locktab.FileOf(dev, st.Ino), sqlitefile.ReservedByte)
}

// captureUnjournaled logs the transactions of a database without a journal, if
// none is under way. db.mu is held.
func (db *DB) captureUnjournaled() (look, error) {
	if !db.unjournaled.Load() || len(db.dirty) == 0 && !db.allDirty || db.store.isOpen(db.Name()+"-journal") {
		return lookNone, nil
	}
	held, err := db.reserved()
	if err != nil {
		return lookNone, err
	}
	if held {
		return lookUnpublished, nil
	}
	if err := db.captureFile(); err != nil {
		return lookNone, err
	}
	return lookCaptured, nil
}

// awaitCapture holds a write back while a capture of a database without a
// journal reads its pages.
func (db *DB) awaitCapture() {
	if db.unjournaled.Load() {
		db.mu.Lock()
		defer db.mu.Unlock()
	}
}
