package litefs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/vfs"
	"github.com/litefs/litefs/sqlitefile"
)

// endHotJournal ends the transaction of a hot rollback journal. The commit of a
// journal is its removal, and the log has the transaction before: so when the
// files are what the log says, only the removal is missing. A transaction over
// several databases has not committed as long as its super-journal is there,
// whatever the log has of this member: all of them are rolled back.
func (db *DB) endHotJournal(logged bool) error {
	if !logged {
		return db.settleJournal()
	}
	pending, err := db.superPending()
	if err != nil {
		return err
	}
	refused, err := db.wasRefused()
	if err != nil {
		return err
	}
	if pending || refused {
		return db.settleJournal()
	}
	db.log().Info("a commit is finished: its journal is removed")
	return db.removeJournal()
}

// superPending reports whether the journal belongs to a super-journal that is
// still there.
func (db *DB) superPending() (bool, error) {
	super, err := db.store.superOf(db.Name())
	if err != nil || super == "" {
		return false, err
	}
	return db.store.superExists(super), nil
}

// settleJournal plays a hot rollback journal back, as SQLite would at its next
// read. A journal whose super-journal is gone belongs to a transaction that
// has committed, and is only removed.
func (db *DB) settleJournal() error {
	if !journalHot(db.JournalPath()) {
		return nil
	}
	super, err := db.store.superOf(db.Name())
	if err != nil {
		return fmt.Errorf("read the super-journal's name: %w", err)
	}
	if super != "" && !db.store.superExists(super) {
		db.log().Info("a commit over several databases is finished: the journal is removed", "super_journal", super)
		return db.removeJournal()
	}
	j, err := os.Open(db.JournalPath())
	if err != nil {
		return err
	}
	defer j.Close() //nolint:errcheck // read only
	fi, err := j.Stat()
	if err != nil {
		return err
	}
	r, err := sqlitefile.NewJournalReader(j, fi.Size())
	if errors.Is(err, sqlitefile.ErrNoJournal) {
		return db.removeJournal() // torn before any page was written (SQLite: pager_playback)
	}
	if err != nil {
		return err
	}
	if err := db.playBack(r); err != nil {
		return fmt.Errorf("roll back a transaction that was cut off: %w", err)
	}
	db.log().Info("a transaction that was cut off is rolled back")
	return db.removeJournal()
}

// playBack restores the pages of a journal; the first record of a page counts.
func (db *DB) playBack(r *sqlitefile.JournalReader) error {
	f, err := os.OpenFile(db.DatabasePath(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	ps := int64(r.Header().PageSize)
	seen := make(map[uint32]struct{})
	for err == nil {
		var rec sqlitefile.Record
		if rec, err = r.Next(); err != nil {
			break
		}
		if _, dup := seen[rec.Pgno]; dup {
			continue
		}
		seen[rec.Pgno] = struct{}{}
		_, err = f.WriteAt(rec.Page, int64(rec.Pgno-1)*ps)
	}
	if errors.Is(err, io.EOF) {
		err = f.Truncate(int64(r.Header().InitialPages) * ps)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// removeJournal removes the rollback journal durably.
func (db *DB) removeJournal() error {
	if err := os.Remove(db.JournalPath()); err != nil {
		return err
	}
	return vfs.OS().SyncDir(filepath.Dir(db.JournalPath()))
}
