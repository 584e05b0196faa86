package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/vfs"
)

// A node with an empty data directory may begin with what an archive has (docs/archive.md): each database at its newest
// moment there, under its id, as a replica that had followed until then. What came later it gets from the primary, or
// nobody has it any more and it goes on from there.

// ArchivedDB is a database as an archive has it.
type ArchivedDB struct {
	Name     string
	ID       uint32
	Pos      Pos
	Epoch    uint64
	PageSize uint32 // bytes
	Count    uint32 // pages
	Time     time.Time

	// Restore writes it to a file that does not exist.
	Restore func(ctx context.Context, path string) error
}

// Seeder finds databases in archives.
type Seeder interface {
	// Databases returns those that are there, and one error for all or some that cannot be had.
	Databases(ctx context.Context) ([]ArchivedDB, error)
}

// Seeded is what a start took from an archive.
type Seeded struct {
	Databases int
	Bytes     int64
	Err       string // why some, or all, were not taken; "": all were
}

// seedingPath is there from before the first file of a seed until after the last: one that a crash cut off begins anew.
func (s *Store) seedingPath() string { return filepath.Join(s.path, "seeding") }

// seed fills an empty data directory. What cannot be had from the archive is left to the primary, if there is one.
func (s *Store) seed(ctx context.Context) error {
	if s.Seeder == nil {
		return nil
	}
	cut := true
	if _, err := os.Stat(s.seedingPath()); errors.Is(err, fs.ErrNotExist) {
		cut = false
	} else if err != nil {
		return err
	}
	if !cut {
		if empty, err := s.isEmpty(); err != nil || !empty {
			return err
		}
	}
	if err := durable.Replace(vfs.OS(), s.seedingPath(), nil); err != nil {
		return fmt.Errorf("begin with an archive: %w", err)
	}
	if cut {
		s.Logger.Warn("the last start was cut off while it took databases from an archive: it begins anew")
		for _, dir := range []string{filepath.Join(s.path, "dbs"), s.FilesDir()} {
			if err := clearDir(dir); err != nil {
				return fmt.Errorf("begin with an archive: %w", err)
			}
		}
	}
	if err := s.seedAll(ctx); err != nil {
		return err
	}
	if err := os.Remove(s.seedingPath()); err != nil {
		return fmt.Errorf("begin with an archive: %w", err)
	}
	return vfs.OS().SyncDir(s.path)
}

// isEmpty reports whether the node has never had a database.
func (s *Store) isEmpty() (bool, error) {
	if s.lastRole != RoleNone {
		return false, nil
	}
	for _, dir := range []string{filepath.Join(s.path, "dbs"), s.FilesDir()} {
		if ents, err := os.ReadDir(dir); err != nil || len(ents) > 0 {
			return false, err
		}
	}
	return true, nil
}

func (s *Store) seedAll(ctx context.Context) error {
	dbs, err := s.Seeder.Databases(ctx)
	var failed []error
	if err != nil {
		failed = append(failed, err)
	}
	got := Seeded{}
	var epoch uint64
	for _, a := range dbs {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.Logger.Info("a database comes from the archive", "db", a.Name, "pos", a.Pos.String(), "bytes", int64(a.Count)*int64(a.PageSize))
		if err := s.seedDB(ctx, a); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", a.Name, err))
			continue
		}
		got.Databases++
		got.Bytes += int64(a.Count) * int64(a.PageSize)
		epoch = max(epoch, a.Epoch)
	}
	// Whoever becomes the primary here takes one that is higher.
	if own, err := s.readEpoch(); err != nil {
		return err
	} else if epoch > own {
		if err := s.writeEpoch(epoch); err != nil {
			return err
		}
	}
	if err := errors.Join(failed...); err != nil {
		got.Err = err.Error()
		if err := s.mustFollow(ctx, err); err != nil {
			return err
		}
		s.Logger.Error("not everything was had from the archive: the primary is asked for the rest", "databases", got.Databases, "error", err)
	} else {
		s.Logger.Info("this node begins with what the archive has", "databases", got.Databases, "bytes", got.Bytes)
	}
	s.seeded.Store(&got)
	return nil
}

// mustFollow sees to it that a node that lacks what the archive may have does not begin as a primary with nothing.
func (s *Store) mustFollow(ctx context.Context, why error) error {
	if _, elected := s.Leaser.(Registry); elected {
		if s.MayLead {
			s.Logger.Error("this node does not become the primary before it is started again: it lacks what the archive has")
		}
		s.MayLead = false
		return nil
	}
	if s.Leaser != nil {
		if _, err := s.Leaser.Acquire(ctx); errors.Is(err, ErrPrimaryExists) {
			return nil
		}
	}
	return fmt.Errorf("this node is the primary and cannot begin with what the archive has: start it again when that can be read, or without backup.seed: %w", why)
}

// seedDB makes file and record of one database, as a clean stop would have left them.
func (s *Store) seedDB(ctx context.Context, a ArchivedDB) (err error) {
	if err := ValidateName(a.Name); err != nil {
		return err
	}
	if a.Pos.TXID < 2 {
		return errors.New("its log cannot begin with the first transaction")
	}
	path := filepath.Join(s.FilesDir(), a.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := a.Restore(ctx, path); err != nil {
		return err
	}
	db, err := s.createRecord(a.ID, a.Name)
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	err = db.seedRecord(a)
	if err == nil {
		err = db.noteState()
	}
	if err = errors.Join(err, db.closeRecord(err == nil)); err != nil {
		return errors.Join(err, os.RemoveAll(db.dir), os.Remove(path))
	}
	return nil
}

// seedRecord begins the log at the position, and proves that the file has it. db.mu is held.
func (db *DB) seedRecord(a ArchivedDB) error {
	f, err := os.Open(db.DatabasePath())
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := errors.Join(db.sums.SetPageSize(a.PageSize), db.sums.Resize(a.Count)); err != nil {
		return err
	}
	var bad error
	err = pagesum.Compute(f, a.PageSize, a.Count, 0, func(pgno uint32, sum uint64) {
		if err := db.sums.Set(pgno, sum); err != nil {
			bad = err
		}
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	if got := db.sums.Sum(); got != a.Pos.Chksum {
		return fmt.Errorf("%w: got %016x, want %016x", errChecksum, got, a.Pos.Chksum)
	}
	if err := db.epochList.note(ltxlog.Entry{Epoch: a.Epoch, Max: a.Pos.TXID}, false); err != nil {
		return err
	}
	_, err = db.txlog.Begin(ltxlog.Header{
		Min: a.Pos.TXID, Max: a.Pos.TXID, Pre: a.Pos.Chksum, Commit: a.Count, PageSize: a.PageSize, Epoch: a.Epoch, Timestamp: a.Time,
	})
	if err == nil {
		err = db.sums.Mark(a.Pos.TXID)
	}
	return err
}

// clearDir removes what is in a directory.
func clearDir(dir string) error {
	ents, err := os.ReadDir(dir)
	for _, ent := range ents {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, ent.Name())))
	}
	return err
}
