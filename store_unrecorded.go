package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"time"
)

// A database may lie in the tree and be on no record: `litefs adopt` brought it, or somebody put it into the data directory
// while the daemon was down. Until it is on record nothing of it is captured, so no program writes to it before: the open
// that would let one in waits (recordBefore). So that other nodes and archives have it without being asked, a primary
// puts all of them on record once it has begun (recordAll), one after the other, beside its work.
//
// Reading a database that nobody writes to needs no lock, and whoever wants to write waits for the end of it. One that a
// program writes to already is left to the ends of its transactions, and to its last close.

// beginAdopting waits until nobody else puts the file at name on record. Nobody else does before end is called.
func (s *Store) beginAdopting(name string) (end func()) {
	for {
		s.mu.Lock()
		busy := s.adopting[name]
		if busy == nil {
			done := make(chan struct{})
			s.adopting[name] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.adopting, name)
				s.mu.Unlock()
				close(done)
			}
		}
		s.mu.Unlock()
		<-busy
	}
}

// awaitAdopting waits while the file at name is put on record.
func (s *Store) awaitAdopting(name string) {
	s.mu.Lock()
	busy := s.adopting[name]
	s.mu.Unlock()
	if busy != nil {
		<-busy
	}
}

// recordsNew reports whether this node is the primary, and its role is not about to move.
func (s *Store) recordsNew() bool { return s.IsPrimary() && !s.withheld.Load() }

// unrecorded reports whether the file at name is a database that belongs on record and is not there.
func (s *Store) unrecorded(name string) bool {
	if s.DBByName(name) != nil || ValidateName(name) != nil || !s.recordsNew() {
		return false
	}
	s.mu.Lock()
	_, aside := s.failed[name]
	s.mu.Unlock()
	return !aside && s.hasHeader(name)
}

// unwritten reports whether no program has the file at name open for writing, and none has died in a transaction: SQLite
// plays such a journal back, and the end of that puts the database on record.
func (s *Store) unwritten(name string) bool {
	s.mu.Lock()
	f := s.opens[name]
	s.mu.Unlock()
	return (f == nil || f.writers == 0) && !journalHot(filepath.Join(s.FilesDir(), name)+"-journal")
}

// recordBefore puts a database on record before a program that may write to it has it open. It is called in an open, with
// no lock.
func (s *Store) recordBefore(name string) {
	if s.unrecorded(name) && s.unwritten(name) {
		s.adoptClosed(name)
	}
}

// movedAside is the end of a name that makeWay gives: such a file stays on its node.
var movedAside = regexp.MustCompile(`\.local-[0-9a-f]{8}$`)

// recordAll puts every database of the tree that has no record on one. It runs beside everything else, one database at a
// time, once in the life of a store; what is left when the role goes, the next reign goes on with.
func (s *Store) recordAll() {
	if !s.recording.TryLock() {
		return // another reign's is at work
	}
	defer s.recording.Unlock()
	if s.recordedAll {
		return
	}
	names, bytes, err := s.listUnrecorded()
	if err != nil {
		s.Logger.Error("cannot look for databases without a record: one is recorded when it is opened", "error", err)
		return
	}
	if len(names) > 0 {
		s.Logger.Info("databases without a record are put on one; each opens for writing when that is done", "databases", len(names), "bytes", bytes)
	}
	began, last := time.Now(), time.Now()
	for i, name := range names {
		if s.ctx.Err() != nil || !s.recordsNew() {
			return
		}
		if now := time.Now(); now.Sub(last) > recordProgress {
			last = now
			s.Logger.Info("databases without a record are being put on one", "done", i, "of", len(names), "next", name)
		}
		if s.unrecorded(name) && s.unwritten(name) {
			s.adoptClosed(name)
		}
	}
	s.recordedAll = s.ctx.Err() == nil && s.recordsNew()
	if len(names) > 0 {
		s.Logger.Info("every database that nobody writes to is on record", "looked_at", len(names), "took", time.Since(began).Round(time.Millisecond))
	}
}

// recordProgress is the least time between two lines that say how far recordAll is.
const recordProgress = 10 * time.Second

// listUnrecorded lists the databases that have no record, and how large they are together.
func (s *Store) listUnrecorded() (names []string, bytes int64, err error) {
	err = s.eachFile(func(name string, d fs.DirEntry) error {
		if _, typ := fileOf(name); typ != FileTypeDatabase || movedAside.MatchString(name) || !s.unrecorded(name) {
			return nil
		}
		names = append(names, name)
		if fi, err := d.Info(); err == nil {
			bytes += fi.Size()
		}
		return nil
	})
	return names, bytes, err
}

// eachFile calls fn for each regular file of the tree. What goes away meanwhile is left out.
func (s *Store) eachFile(fn func(name string, d fs.DirEntry) error) error {
	root := s.FilesDir()
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case s.ctx.Err() != nil:
			return s.ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.Type().IsRegular():
			return nil
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return fn(name, d)
	})
}

// settleUnrecorded plays the hot journals of databases without a record back, as SQLite does when it reads one the next
// time: afterwards they are whole, and can be put on record unopened. It comes before the tree is in use, for it writes to
// the files behind the mount; and it reads no more than the journals.
func (s *Store) settleUnrecorded() error {
	if s.live {
		return nil // the owner of a journal may be alive
	}
	return s.eachFile(func(path string, _ fs.DirEntry) error {
		name, typ := fileOf(path)
		if typ != FileTypeJournal || s.DBByName(name) != nil || s.Failed()[name] != nil || !s.hasHeader(name) {
			return nil
		}
		db := NewDB(s, 0, "")
		db.setName(name)
		if err := db.settleJournal(); err != nil {
			s.Logger.Error("cannot play a rollback journal back: its database is recorded when SQLite has done it", "db", name, "error", err)
		}
		return nil
	})
}

// appendWhole logs the database as its first entry, with all that is committed in its write-ahead log. Nobody writes to
// it. db.mu is held.
func (db *DB) appendWhole(ctx context.Context) error {
	if err := db.openWALNow(); err != nil {
		return err
	}
	if err := db.locateAll(); err != nil {
		return err
	}
	img, err := db.openImage()
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	whole := db.wholeChange(img, 1)
	whole.read = func(pgno uint32, b []byte) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("the store closes: %w", err)
		}
		return img.readPage(pgno, b)
	}
	return db.appendChange(whole)
}
