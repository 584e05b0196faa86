package litefs

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/vfs"
	"github.com/litefs/litefs/sqlitefile"
)

// openRecords recovers every database on record, two at a time. One that fails
// is set aside: its error is kept under its name, and its files stay where
// they are and refuse to open.
func (s *Store) openRecords() error {
	ents, err := os.ReadDir(filepath.Join(s.path, "dbs"))
	if err != nil {
		return fmt.Errorf("list the databases: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(2)
	named := make(map[string]struct{})
	for _, ent := range ents {
		id, err := ParseDBID(ent.Name())
		if err != nil {
			s.Logger.Warn("not a database's record: left alone", "path", filepath.Join(s.path, "dbs", ent.Name()))
			continue
		}
		// Before anything is recovered: two recoveries of one file would undo
		// each other. A record without a name was not finished.
		name, err := os.ReadFile(filepath.Join(s.DBDir(id), "name"))
		_, twice := named[string(name)]
		if twice || errors.Is(err, fs.ErrNotExist) {
			s.Logger.Warn("record is set aside: another one has its name, or it has none", "db", string(name), "id", FormatDBID(id))
			s.rememberGone(id)
			if err := s.setAside(s.DBDir(id)); err != nil {
				return fmt.Errorf("set a record aside: %w", err)
			}
			continue
		}
		if err == nil {
			named[string(name)] = struct{}{}
		}
		g.Go(func() error {
			s.openRecordOf(id)
			return nil
		})
	}
	return g.Wait()
}

func (s *Store) openRecordOf(id uint32) {
	db := NewDB(s, id, s.DBDir(id))
	db.ours.Store(s.lastRole == RolePrimary)
	err := db.Open()
	if err == nil {
		return
	}
	if errors.Is(err, errFileGone) {
		s.Logger.Warn("record without its file is set aside", "db", db.Name(), "id", FormatDBID(id), "reason", err)
		s.rememberGone(id)
		if err := s.setAside(db.dir); err != nil {
			s.Logger.Error("cannot set a record aside", "path", db.dir, "error", err)
		}
		return
	}
	name := db.Name()
	if name == "" {
		name = FormatDBID(id)
	}
	s.Logger.Error("database cannot be opened: it is set aside, the others go on; look at it with `litefs verify`, or move its record out of the data directory to begin a new one", "db", name, "record", db.dir, "error", err)
	s.mu.Lock()
	s.failed[name] = err
	s.mu.Unlock()
}

// setAside moves a record, or a file, out of the way without losing it.
func (s *Store) setAside(path string) error {
	suffix, err := randomHex(4)
	if err != nil {
		return err
	}
	return os.Rename(path, filepath.Join(s.path, "aside", filepath.Base(path)+"-"+string(suffix)))
}

// register makes db known under its id and name.
func (s *Store) register(db *DB) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[db.Name()] != nil || s.byID[db.id] != nil {
		return ErrDatabaseExists
	}
	s.byID[db.id], s.byName[db.Name()] = db, db
	delete(s.dropped, db.id)
	return nil
}

// unregister forgets db, and reports whether it was known.
func (s *Store) unregister(db *DB) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.byID[db.id] == db
	delete(s.byID, db.id)
	if s.byName[db.Name()] == db {
		delete(s.byName, db.Name())
	}
	s.dropped[db.id] = struct{}{}
	return known
}

// Dropped reports whether a database with this id was here and was removed.
func (s *Store) Dropped(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.dropped[id]
	return ok
}

// newID draws a database id. Ids are random, so that two nodes that were both
// primary for a while do not give one id to two databases.
func (s *Store) newID() (uint32, error) {
	for {
		var b [4]byte
		if _, err := rand.Read(b[:]); err != nil {
			return 0, err
		}
		id := binary.BigEndian.Uint32(b[:])
		s.mu.Lock()
		_, used := s.byID[id]
		s.mu.Unlock()
		if id != 0 && !used {
			return id, nil
		}
	}
}

// createRecord makes an empty record, durably.
func (s *Store) createRecord(id uint32, name string) (*DB, error) {
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	dir := s.DBDir(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("record of %s: %w", name, err)
	}
	db := NewDB(s, id, dir)
	db.setName(name)
	err := durable.Replace(vfs.OS(), filepath.Join(dir, "name"), []byte(name))
	if err == nil {
		err = vfs.OS().SyncDir(filepath.Dir(dir))
	}
	if err == nil {
		err = os.Mkdir(db.LTXDir(), 0o700)
	}
	if err == nil {
		db.mu.Lock()
		err = db.openRecord()
		db.mu.Unlock()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record of %s: %w", name, err), os.RemoveAll(dir))
	}
	return db, nil
}

// adopt begins to record the database at name, which has a valid header, at the end of a transaction. Its
// first entry holds every page. If somebody else has begun meanwhile it returns
// that database, and ErrDatabaseExists.
func (s *Store) adopt(name string) (*DB, error) {
	return s.adoptWith(name, func(db *DB) error { return db.compareAll(1) })
}

// adoptWith is adopt with fill, which writes the first entry.
//
// The file may be removed or replaced while its pages are read. Whoever does
// that finds no record to drop, so it is looked for once more when the record
// is known: what was recorded is then dropped here.
func (s *Store) adoptWith(name string, fill func(*DB) error) (*DB, error) {
	defer s.beginAdopting(name)()
	if db := s.DBByName(name); db != nil {
		return db, ErrDatabaseExists
	}
	before, err := os.Stat(filepath.Join(s.FilesDir(), name))
	if err != nil {
		return nil, err
	}
	db, err := s.adoptFile(name, fill)
	if err != nil {
		return nil, err
	}
	after, err := os.Stat(filepath.Join(s.FilesDir(), name))
	if err == nil && !os.SameFile(before, after) {
		err = fmt.Errorf("%s was replaced: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		s.drop(db)
		return nil, err
	}
	return db, nil
}

// adoptFile is adoptWith for a file that stays where it is. Nobody else adopts it.
func (s *Store) adoptFile(name string, fill func(*DB) error) (*DB, error) {
	id, err := s.newID()
	if err != nil {
		return nil, err
	}
	db, err := s.createRecord(id, name)
	if err != nil {
		return nil, err
	}
	db.mu.Lock()
	err = fill(db)
	if err == nil {
		err = s.register(db)
	}
	if err != nil {
		db.closeWAL()
		err = errors.Join(err, db.closeRecord(false), os.RemoveAll(db.dir))
		db.mu.Unlock()
		return nil, fmt.Errorf("begin to record %s: %w", name, err)
	}
	db.start()
	db.mu.Unlock()
	s.MarkDirty(db.id)
	db.log().Info("database recorded", "id", FormatDBID(id), "pos", db.Pos().String())
	return db, nil
}

// drop forgets a database whose file is gone, and removes its record.
func (s *Store) drop(db *DB) { s.dropWith(db, removeRecord) }

// dropKeeping forgets a database whose file holds something else, and sets its
// record aside: whether that was meant is not ours to say.
func (s *Store) dropKeeping(db *DB) { s.dropWith(db, s.setAside) }

// dropWith forgets a database and ends its record in the background: this runs
// inside the request that removed the file, and the capture loop, whose end is
// waited for, may itself be waiting for the directory that the kernel has locked
// for that request.
func (s *Store) dropWith(db *DB, end func(path string) error) {
	if !s.unregister(db) {
		return
	}
	s.MarkDirty(db.id)
	s.goRun(func() {
		s.rememberDropped(db.id) // first: the record is what tells of the drop until then
		if err := errors.Join(db.close(), end(db.dir)); err != nil {
			db.log().Error("the record of a dropped database is not wholly removed", "record", db.dir, "error", err)
			return
		}
		db.log().Info("database dropped", "id", FormatDBID(db.id))
	})
}

// rename gives a database another name, durably.
func (s *Store) rename(db *DB, name string) error {
	if err := ValidateName(name); err != nil {
		return err
	}
	if err := durable.Replace(vfs.OS(), filepath.Join(db.dir, "name"), []byte(name)); err != nil {
		return fmt.Errorf("record the new name of %s: %w", db.Name(), err)
	}
	db.mu.Lock()
	db.closeWAL()
	s.mu.Lock()
	if s.byName[db.Name()] == db {
		delete(s.byName, db.Name())
	}
	s.byName[name] = db
	old := db.Name()
	db.setName(name)
	s.mu.Unlock()
	db.openWAL()
	db.mu.Unlock()
	s.MarkDirty(db.id)
	db.log().Info("database renamed", "from", old)
	return nil
}

// hasHeader reports whether the file at name begins like a database.
func (s *Store) hasHeader(name string) bool {
	f, err := os.Open(filepath.Join(s.FilesDir(), name))
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return false
	}
	_, _, err = readHeader(f)
	return err == nil
}

// errFileGone is a record whose database file is not there any more.
var errFileGone = fmt.Errorf("its file is gone: %w", fs.ErrNotExist)

// fileOf returns which database a file of the tree belongs to, and as what.
func fileOf(path string) (name string, typ FileType) {
	for _, s := range []struct {
		suffix string
		typ    FileType
	}{{"-journal", FileTypeJournal}, {"-wal", FileTypeWAL}, {"-shm", FileTypeSHM}} {
		if name, ok := strings.CutSuffix(path, s.suffix); ok && name != "" && !strings.HasSuffix(name, "/") {
			return name, s.typ
		}
	}
	return path, FileTypeDatabase
}

// journalHot reports whether the rollback journal at path holds a transaction
// that is not finished.
func journalHot(path string) bool {
	f, err := openRead(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // read only
	b := make([]byte, len(sqlitefile.JournalMagic))
	n, err := f.ReadAt(b, 0)
	return err == nil && n == len(b) && string(b) == sqlitefile.JournalMagic
}
