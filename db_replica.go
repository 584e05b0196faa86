package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/peer"
)

// Limits of a replica's write-ahead log. Readers that overlap for ever keep it
// from restarting; above the hard limit applying waits for them.
const (
	replicaSoftWAL = 16 << 20
	replicaHardWAL = 1 << 30
)

func (db *DB) isStale() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.stale
}

// takePeer takes the replica's locks on the database, so that nobody here
// writes to it, and makes it ready to apply.
func (db *DB) takePeer(ctx context.Context) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.takePeerLocked(ctx)
}

func (db *DB) takePeerLocked(ctx context.Context) error {
	if db.peer != nil || db.closed {
		return nil
	}
	path := filepath.Join(db.store.MountDir(), db.Name())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("directory of %s: %w", db.Name(), err)
	}
	p, err := peer.Open(ctx, peer.Options{Path: path, Logger: db.log(), SoftWAL: replicaSoftWAL, HardWAL: replicaHardWAL})
	if err != nil {
		return err
	}
	db.closeWAL()
	db.peer = p
	return nil
}

// releasePeer lets go of the locks. db.mu is held.
func (db *DB) releasePeer() error {
	p := db.peer
	db.peer = nil
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return p.Close(ctx)
}

// leaveMount closes what the database has open on the mount.
func (db *DB) leaveMount() error {
	db.shmGone()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.peer == nil {
		return nil
	}
	return db.releasePeer()
}

// apply takes one LTX file of size bytes from r into the log, then into the
// files. An entry that is in the log but not in the files is applied at the
// next start.
func (db *DB) apply(ctx context.Context, r io.Reader, size int64) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return ErrDatabaseNotFound
	}
	e, err := db.txlog.Import(io.LimitReader(r, size), size, false)
	if err != nil {
		return err
	}
	if err := db.applyEntry(ctx, e); err != nil {
		db.stale = true
		return err
	}
	return nil
}

// applyEntry makes the newest entry of the log visible to readers. db.mu is
// held.
func (db *DB) applyEntry(ctx context.Context, e ltxlog.Entry) error {
	if err := db.takePeerLocked(ctx); err != nil {
		return err
	}
	pgnos, sums, err := db.entryChanges(e)
	if err != nil {
		return err
	}
	if e.Commit == 0 {
		return errors.New("the entry empties the database, which is not understood")
	}
	keep := make(map[uint32]struct{}, len(pgnos))
	for _, pgno := range pgnos {
		keep[pgno] = struct{}{}
	}
	err = db.peer.Apply(ctx, e.Commit, e.PageSize, func(yield func(pgno uint32, data []byte) error) error {
		return db.txlog.Pages(e, func(pgno uint32, data []byte) error {
			if _, ok := keep[pgno]; !ok {
				return nil
			}
			return yield(pgno, data)
		})
	})
	if err != nil {
		return err
	}
	if db.sums.PageSize() != e.PageSize {
		if err := db.sums.SetPageSize(e.PageSize); err != nil {
			return err
		}
	}
	for i, pgno := range pgnos {
		if err := db.sums.Set(pgno, sums[i]); err != nil {
			return err
		}
	}
	if err := db.sums.Resize(e.Commit); err != nil {
		return err
	}
	if err := db.sums.Mark(e.Max); err != nil {
		return err
	}
	db.stale = false
	db.store.stats.Applied.Add(1)
	db.publish()
	db.store.MarkDirty(db.id)
	return nil
}

// entryChanges returns the pages of e that differ from what is here, with
// their checksums, after checking that e leads to the checksum it promises.
func (db *DB) entryChanges(e ltxlog.Entry) (pgnos []uint32, sums []uint64, err error) {
	snapshot := e.Min == 1
	samePages := db.sums.PageSize() == e.PageSize && !db.stale
	rolling := uint64(ltx.ChecksumFlag)
	err = db.txlog.Pages(e, func(pgno uint32, data []byte) error {
		sum := uint64(ltx.ChecksumPage(pgno, data))
		rolling ^= sum &^ uint64(ltx.ChecksumFlag)
		if snapshot && samePages && pgno <= db.sums.Count() && db.sums.Get(pgno) == sum {
			return nil
		}
		pgnos, sums = append(pgnos, pgno), append(sums, sum)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if !snapshot {
		rolling = db.sums.SumAfter(func(yield func(uint32, uint64) bool) {
			for i, pgno := range pgnos {
				if !yield(pgno, sums[i]) {
					return
				}
			}
		}, e.Commit)
	}
	if rolling != e.Post {
		return nil, nil, fmt.Errorf("checksum after %016x: got %016x, want %016x: a snapshot is fetched", e.Max, rolling, e.Post)
	}
	return pgnos, sums, nil
}

// ForceCreateDB creates a database with the given ID & name. This occurs when
// replicating from a primary server. A local file of that name that is not a
// database of the cluster is moved aside under a new name.
func (s *Store) ForceCreateDB(id uint32, name string) (*DB, error) {
	if s.DB(id) != nil || s.DBByName(name) != nil {
		return nil, ErrDatabaseExists
	}
	if err := s.makeWay(name); err != nil {
		return nil, err
	}
	db, err := s.createRecord(id, name)
	if err != nil {
		return nil, err
	}
	if err := s.register(db); err != nil {
		return nil, err
	}
	db.mu.Lock()
	db.start()
	db.mu.Unlock()
	return db, nil
}

// makeWay renames a local file that stands where a replicated database comes.
func (s *Store) makeWay(name string) error {
	path := filepath.Join(s.MountDir(), name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	suffix, err := randomHex(4)
	if err != nil {
		return err
	}
	s.Logger.Warn("a local file stands where a replicated database comes: it is renamed", "file", name, "new", name+".local-"+string(suffix))
	for _, sfx := range []string{"", "-wal", "-shm", "-journal"} {
		err := os.Rename(path+sfx, path+".local-"+string(suffix)+sfx)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// dropReplica removes a database that the primary has removed.
func (s *Store) dropReplica(ctx context.Context, id uint32) error {
	db := s.DB(id)
	if db == nil {
		return nil
	}
	path := filepath.Join(s.MountDir(), db.Name())
	s.unregister(db)
	err := db.close()
	for _, sfx := range []string{"", "-wal", "-shm", "-journal"} {
		if rerr := os.Remove(path + sfx); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	err = errors.Join(err, os.RemoveAll(db.dir))
	s.MarkDirty(id)
	db.log().Info("database dropped with the primary's", "id", FormatDBID(id))
	return err
}

// renameReplica gives a database the name that the primary gave it. Its
// readers keep what they have open.
func (s *Store) renameReplica(ctx context.Context, db *DB, name string) error {
	if old := s.DBByName(name); old != nil {
		if err := s.dropReplica(ctx, old.ID()); err != nil {
			return err
		}
	}
	if err := s.makeWay(name); err != nil {
		return err
	}
	db.mu.Lock()
	var err error
	if db.peer != nil {
		_, err = db.peer.Checkpoint(ctx)
		err = errors.Join(err, db.releasePeer())
	}
	db.mu.Unlock()
	from, to := filepath.Join(s.MountDir(), db.Name()), filepath.Join(s.MountDir(), name)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.Rename(from, to)
	}
	for _, sfx := range []string{"-wal", "-shm"} {
		if rerr := os.Rename(from+sfx, to+sfx); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", db.Name(), name, err)
	}
	if err := s.rename(db, name); err != nil {
		return err
	}
	return db.takePeer(ctx)
}
