package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/sqlitefile"
)

// The methods in this file let a Go program act on a database as the mount
// does, without one.

// CreateDB creates a new database with the given name. The returned file
// handle must be closed by the caller. Returns an error if a database with the
// same name already exists.
func (s *Store) CreateDB(name string) (*DB, *os.File, error) {
	if err := ValidateName(name); err != nil {
		return nil, nil, err
	}
	if s.Role() == RoleReplica {
		return nil, nil, ErrReadOnlyReplica
	}
	if s.DBByName(name) != nil || s.exists(name) {
		return nil, nil, ErrDatabaseExists
	}
	id, err := s.newID()
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(s.FilesDir(), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return nil, nil, ErrDatabaseExists
	} else if err != nil {
		return nil, nil, err
	}
	db, err := s.createRecord(id, name)
	if err == nil {
		err = s.register(db)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	db.mu.Lock()
	db.allDirty = true
	db.start()
	db.mu.Unlock()
	return db, f, nil
}

// CreateJournal creates a new journal file on disk.
func (db *DB) CreateJournal() (*os.File, error) {
	if db.store.Role() == RoleReplica {
		return nil, ErrReadOnlyReplica
	}
	return os.OpenFile(db.JournalPath(), os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_TRUNC, 0o666)
}

// WriteJournal writes data to the rollback journal file.
func (db *DB) WriteJournal(f *os.File, data []byte, offset int64) error {
	if db.store.Role() == RoleReplica {
		return ErrReadOnlyReplica
	}
	_, err := f.WriteAt(data, offset)
	return err
}

// WriteDatabase writes data to the main database file.
func (db *DB) WriteDatabase(f *os.File, data []byte, offset int64) error {
	if db.store.Role() == RoleReplica {
		return ErrReadOnlyReplica
	}
	if _, err := f.WriteAt(data, offset); err != nil {
		return err
	}
	db.noteWrite(offset, len(data))
	return nil
}

// CommitJournal deletes the journal file which commits or rolls back the
// transaction. In the modes TRUNCATE and PERSIST the journal is truncated or
// its header zeroed instead.
func (db *DB) CommitJournal(mode JournalMode) error {
	if db.store.Role() == RoleReplica {
		return ErrReadOnlyReplica
	}
	switch mode {
	case JournalModeDelete, JournalModeTruncate, JournalModePersist:
	default:
		return fmt.Errorf("commit: journal mode %q has no rollback journal", mode)
	}
	if _, err := os.Stat(db.JournalPath()); err != nil {
		return fmt.Errorf("commit without a journal: %w", err)
	}
	if err := db.journalEnds(false); err != nil {
		return err
	}
	switch mode {
	case JournalModeDelete:
		return os.Remove(db.JournalPath())
	case JournalModeTruncate:
		return os.Truncate(db.JournalPath(), 0)
	default: // PERSIST
		f, err := os.OpenFile(db.JournalPath(), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(make([]byte, sqlitefile.JournalHeaderSize), 0)
		return errors.Join(err, f.Close())
	}
}

// TryApplyLTX attempts to apply an LTX file to the database. It must continue
// from the database's position.
func (db *DB) TryApplyLTX(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return db.apply(context.Background(), f, fi.Size())
}

// InWriteTx returns true if the RESERVED lock has an exclusive lock.
func (db *DB) InWriteTx() bool { return db.locks.reserved.State() == RWMutexStateExclusive }

// PendingLock returns the database's PENDING lock.
func (db *DB) PendingLock() *RWMutex { return &db.locks.pending }

// ReservedLock returns the database's RESERVED lock.
func (db *DB) ReservedLock() *RWMutex { return &db.locks.reserved }

// SharedLock returns the database's SHARED lock.
func (db *DB) SharedLock() *RWMutex { return &db.locks.shared }
