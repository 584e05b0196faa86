package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
)

// This file holds commits of rollback journals back until replicas have them: docs/promises.md.

// promiseJournal captures the transaction whose journal is about to end, and waits until it is where its level wants it.
// db.mu is held.
func (db *DB) promiseJournal(level Level, member bool) error {
	u, fresh := db.undecided, false
	if u == nil || !u.journal {
		if settled, err := db.settleUndecided(); err != nil || !settled {
			return errors.Join(errors.New("a transaction of the write-ahead log is in doubt"), err)
		}
		head, _ := db.txlog.Head()
		u, fresh = &undecided{before: Pos{TXID: head.Max, Chksum: head.Post}, epoch: head.Epoch, journal: true}, true
		u.pos = u.before
		db.undecided = u
	}
	err := errors.Join(db.captureFile(), db.settleSync())
	head, _ := db.txlog.Head()
	pos := Pos{TXID: head.Max, Chksum: head.Post}
	switch {
	case pos == u.pos && fresh: // nothing was logged
		db.undecided = nil
		return err
	case pos.Chksum == u.before.Chksum: // a rollback has brought back what was decided
		db.decide()
		return err
	case err != nil && pos == u.pos:
		return err
	}
	u.pos = pos
	if err == nil && level.Gated() {
		err = db.awaitUnlocked(pos, level, time.Now().Add(level.Timeout))
	}
	if err == nil && db.undecided != u {
		err = errors.New("it was settled otherwise meanwhile")
	}
	if err == nil && db.store.Role() != RolePrimary {
		err = errors.New("this node is not the primary any more")
	}
	if err != nil {
		u.refused = true
		return errors.Join(err, db.noteRefused(pos.TXID))
	}
	if u.refused = false; !member {
		db.decide()
	}
	return nil
}

// decideMember decides a transaction over several databases, all of which have their part.
func (db *DB) decideMember() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if u := db.undecided; u != nil && u.journal && !u.refused {
		db.decide()
	}
}

// promiseFirst waits until the first transaction of a database is where its level wants it.
func (db *DB) promiseFirst() error {
	level := db.Level()
	if !level.Gated() {
		return nil
	}
	return db.store.awaitPromise(db, db.Pos(), level, time.Now().Add(level.Timeout))
}

// awaitUnlocked waits for replicas and archives without db.mu, which is held before and after: all pages of the transaction are in
// the file, and its writer waits for us. So a replica may get a copy of the whole database meanwhile.
func (db *DB) awaitUnlocked(pos Pos, level Level, until time.Time) error {
	db.store.relieve()
	db.mu.Unlock()
	defer db.mu.Lock()
	return db.store.awaitPromise(db, pos, level, until)
}

// mayPromise reports whether a write to the database file can be held to the level: there is a journal, or a write-ahead
// log, by whose end or frames the commit is known beforehand.
func (db *DB) mayPromise() bool {
	if !db.Level().Gated() || journalHot(db.JournalPath()) {
		return true
	}
	_, err := os.Stat(db.WALPath())
	return err == nil
}

// The TXID of a transaction whose commit was refused after its entry had been written: a recovery that finds it at the
// head, and the files like it, rolls it back.
func (db *DB) refusedPath() string { return filepath.Join(db.dir, "refused") }

func (db *DB) noteRefused(txid uint64) error {
	if err := durable.Replace(vfs.OS(), db.refusedPath(), []byte(strconv.FormatUint(txid, 10)+"\n")); err != nil {
		return fmt.Errorf("note that a commit was refused: %w", err)
	}
	return nil
}

// wasRefused reports whether the transaction at the head was.
func (db *DB) wasRefused() (bool, error) {
	b, err := os.ReadFile(db.refusedPath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	head, _ := db.txlog.Head()
	txid, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return false, fmt.Errorf("%s: %w", db.refusedPath(), err)
	}
	return head.Max == txid, nil
}
