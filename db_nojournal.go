package litefs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

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
func (db *DB) reserved() (bool, error) { return db.store.reserved(db.Name()) }

func (s *Store) reserved(name string) (bool, error) {
	dev := s.lockDev.Load()
	fi, err := os.Stat(filepath.Join(s.FilesDir(), name))
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
	if journalHot(db.JournalPath()) {
		return lookNone, nil // its writer is dead: SQLite plays it back
	}
	held, err := db.reserved()
	if errors.Is(err, fs.ErrNotExist) {
		return lookNone, nil // it will be dropped
	}
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

// newcomer is a database that is written without a journal and not on record
// yet. hold is not nil while it is put there: then writes wait for its end.
type newcomer struct{ hold chan struct{} }

// awaitNewcomer holds a write back while the database begins to be recorded.
func (s *Store) awaitNewcomer(name string) {
	s.mu.Lock()
	var hold chan struct{}
	if c := s.newcomers[name]; c != nil {
		hold = c.hold
	}
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
}

// noteNewcomer begins to record a database that SQLite writes the first page of,
// with no journal, as soon as the transaction ends. Any other new file waits for
// its last close.
func (s *Store) noteNewcomer(name string, off int64, data []byte) {
	if off != 0 || len(data) < sqlitefile.HeaderSize || s.isOpen(name+"-journal") {
		return
	}
	if _, err := sqlitefile.ParseHeader(data); err != nil {
		return
	}
	if held, err := s.reserved(name); err != nil || !held {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newcomers[name] != nil {
		return
	}
	c := &newcomer{}
	s.newcomers[name] = c
	s.goRun(func() { s.recordNewcomer(name, c) })
}

// recordNewcomer waits for the end of the transaction, and records the database
// before the next one.
func (s *Store) recordNewcomer(name string, c *newcomer) {
	defer func() {
		s.mu.Lock()
		delete(s.newcomers, name)
		s.mu.Unlock()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for delay, waited := lookAgainMin, time.Duration(0); waited < lookAgainStop; waited += delay {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		if s.DBByName(name) != nil || !s.isOpen(name) || s.isOpen(name+"-journal") || s.recordBetween(name, c) {
			return
		}
		delay = min(delay*2, lookAgainMax)
		timer.Reset(delay)
	}
}

// recordBetween records the database if no transaction is under way, and
// reports whether it has tried.
func (s *Store) recordBetween(name string, c *newcomer) bool {
	hold := make(chan struct{})
	s.mu.Lock()
	c.hold = hold
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		c.hold = nil
		s.mu.Unlock()
		close(hold)
	}()
	// A write that was past the hold comes from a holder of RESERVED.
	held, err := s.reserved(name)
	if err != nil || held {
		return err != nil
	}
	if s.hasHeader(name) {
		s.adoptClosed(name)
		if db := s.DBByName(name); db != nil {
			db.unjournaled.Store(true)
		}
	}
	return true
}
