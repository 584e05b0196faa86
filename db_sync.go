package litefs

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// SQLite commits with a rollback journal in three steps: it makes the journal
// durable, then the database, then it ends the journal. Nothing depends on the
// second step but the third, and there we write to the log and sync as well. So
// the fsync of the database is answered when it has begun, and the end of the
// journal waits for it: the disk does both at once, and the pages are hashed
// meanwhile. Until then the journal is there and hot, so that a crash in between
// finds what it would have found before: a transaction that has not committed.
//
// The tempting way, to leave the sync out because the log has the pages, would
// make the files of the tree worthless without the log after a power cut.

// SyncMode is what an fsync(2) takes.
type SyncMode int

const (
	// SyncAll is a sync of content and attributes.
	SyncAll SyncMode = iota
	// SyncData is a sync of content and size.
	SyncData
	// SyncBehind: the sync has begun, and the end of the rollback journal waits for it; or the log has, durably, what was
	// to be made durable.
	SyncBehind
)

// Syncing is called before a file is made durable. Of the files of a database nobody asks for the times after a crash.
func (s *Store) Syncing(own bool, path string) SyncMode {
	name, typ := fileOf(path)
	if typ == FileTypeWAL && !own && s.gatedWAL(path) {
		if db := s.DBByName(name); db != nil && db.commitIsLogged() {
			return SyncBehind
		}
	}
	if typ == FileTypeJournal || typ == FileTypeWAL || isSuper(path) {
		if s.insync.waiting.Load() > 0 { // other databases commit as well: this sync is not to hold them up
			s.relieve()
		}
		return SyncData
	}
	db := s.DBByName(name)
	if typ != FileTypeDatabase || db == nil {
		return SyncAll
	}
	if !own && s.Role() != RoleReplica && s.isOpen(name+"-journal") && journalHot(db.JournalPath()) && db.syncBehind() {
		return SyncBehind
	}
	return SyncData
}

// commitIsLogged reports whether SQLite makes a write-ahead log durable for the one commit that was let in and is not
// published yet, and whose pages the log has on disk. Its frames may go with the power, as at synchronous=NORMAL: the
// recovery takes its pages from the log then. The sync of a checkpoint comes after the commit is published.
func (db *DB) commitIsLogged() bool {
	if !db.mu.TryLock() {
		return false // somebody looks at it: the sync is never wrong
	}
	defer db.mu.Unlock()
	u := db.undecided
	if db.closed || u == nil || !u.letIn || db.txlog.Durable() < u.pos.TXID {
		return false
	}
	limit, err := db.publishedLimit()
	return err == nil && limit.Known() && !limit.Covers(u.at)
}

// fileSync is a sync under way.
type fileSync struct {
	file *os.File      // the database; closed by settleSync
	done chan struct{} // closed at its end
	err  error         // valid then
}

// syncBehind begins to make the database file durable while a hot journal covers
// it, and reports whether it has. The next end of the journal waits for it.
func (db *DB) syncBehind() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return !db.closed && db.peer == nil && db.syncing == nil && db.beginSync() == nil
}

// beginSync begins the sync that settleSync waits for. db.mu is held.
func (db *DB) beginSync() error {
	// A descriptor of our own: the application may close its at any time.
	f, err := openRead(db.DatabasePath())
	if err != nil {
		return fmt.Errorf("make the database durable: %w", err)
	}
	s := &fileSync{file: f, done: make(chan struct{})}
	db.syncing = s
	go func() {
		defer close(s.done)
		s.err = db.store.syncFile(f)
	}()
	return nil
}

// syncData makes content and size of a file durable.
func syncData(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return err
		}
	}
}

// settleSync waits for the sync that the application was not made to wait for,
// and returns its error, once. db.mu is held.
func (db *DB) settleSync() error {
	s := db.syncing
	if s == nil {
		return nil
	}
	<-s.done
	db.syncing = nil
	if err := errors.Join(s.err, s.file.Close()); err != nil {
		return fmt.Errorf("make the database durable: %w", err)
	}
	return nil
}

// journalLeaves is called before a rollback journal gets another name, which
// ends it without a capture.
func (db *DB) journalLeaves() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.settleSync()
}

// journalLeaves is called before the file at path gets another name.
func (s *Store) journalLeaves(path string) error {
	name, typ := fileOf(path)
	if db := s.DBByName(name); db != nil && typ == FileTypeJournal {
		return s.refuse(name, db.journalLeaves())
	}
	return nil
}
