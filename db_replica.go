package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Limits of a replica's write-ahead log. Readers that overlap for ever keep it
// from restarting; above the hard limit applying waits for them.
const (
	replicaSoftWAL = 16 << 20
	replicaHardWAL = 1 << 30
)

// isStale reports whether a replica's database waits for a snapshot.
func (db *DB) isStale() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.stale
}

// releasePeer lets go of the locks. db.mu is held.
func (db *DB) releasePeer() error {
	var err error
	if db.load != nil {
		err = db.abortLoad()
	}
	p := db.peer
	db.peer = nil
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return errors.Join(err, p.Close(ctx))
}

// leaveMount closes what the database has open on the mount.
func (db *DB) leaveMount() error {
	var err error
	db.mu.Lock()
	held := db.peer != nil
	db.mu.Unlock()
	if held && db.store.Role() == RolePrimary {
		// A hand-over that came to nothing at the stop has left the locks with a primary. What the peer removes then
		// is told to this database as an application's doing is: not under db.mu.
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		err = db.admit(ctx)
	}
	db.shmGone()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.peer == nil {
		return err
	}
	return errors.Join(err, db.releasePeer())
}

// noPos asks for a snapshot: a position with no checksum is on no history. The
// zero position would bring the log from its start, and the past to readers.
func (db *DB) noPos() Pos { return Pos{TXID: db.TXID()} }

// wantedPos is where the primary is to continue the database.
func (db *DB) wantedPos() Pos {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.wantedPosLocked()
}

func (db *DB) wantedPosLocked() Pos {
	head, ok := db.txlog.Head()
	if !ok || db.load != nil && db.load.end == 0 {
		return Pos{}
	}
	if db.load != nil {
		return Pos{TXID: head.Max, Chksum: head.Post}
	}
	if _, ok := db.unapplied(); db.stale || !ok {
		return db.noPos()
	}
	return Pos{TXID: head.Max, Chksum: head.Post}
}

// reached returns how far the database is on this node: in the log, in the log
// and on disk, visible to readers. It needs no lock: the log of a database
// that is known to the store is there to stay.
func (db *DB) reached() (received, durable, applied Pos) {
	if head, ok := db.txlog.Head(); ok {
		received = Pos{TXID: head.Max, Chksum: head.Post}
	}
	if txid := db.txlog.Durable(); txid > 0 {
		if e, ok := db.txlog.Find(txid); ok && e.Max == txid {
			durable = Pos{TXID: txid, Chksum: e.Post}
		}
	}
	return received, durable, db.Pos()
}

// trouble is why a database does not follow its primary.
type trouble struct {
	err   error
	since time.Time
	retry time.Duration // pause before it is tried again
}

// setTrouble marks the database with err; nil ends the trouble.
func (db *DB) setTrouble(err error, retry time.Duration) {
	old := db.trouble.Load()
	if err == nil {
		if old != nil && db.trouble.CompareAndSwap(old, nil) {
			db.log().Info("database follows the primary again", "after", time.Since(old.since).Round(time.Millisecond))
		}
		return
	}
	t := &trouble{err: err, since: time.Now(), retry: retry}
	if old != nil {
		t.since = old.since
	}
	db.trouble.Store(t)
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
	if err := db.keepIfOurs(ctx); err != nil {
		return err
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
		err = renameTogether(from, to)
		if errors.Is(err, fs.ErrNotExist) && db.Pos().IsZero() {
			err = nil // its first transaction has not come: there is a record and no file
		}
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", db.Name(), name, err)
	}
	if err := s.rename(db, name); err != nil {
		return errors.Join(err, renameTogether(to, from))
	}
	return db.takePeer(ctx)
}

// checkpointReplica copies what it can of a replica's write-ahead log into the
// database file.
func (db *DB) checkpointReplica(ctx context.Context) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer == nil || db.load != nil {
		return nil
	}
	_, err := db.peer.Checkpoint(ctx)
	return err
}

// renameTogether renames a database with its write-ahead log and its wal-index.
// On an error all have the names that they had: frames must not be parted from
// the database that they belong to.
func renameTogether(from, to string) error {
	for i, sfx := range databaseFiles {
		err := os.Rename(from+sfx, to+sfx)
		if err == nil || i > 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		for _, sfx := range slices.Backward(databaseFiles[:i]) {
			if back := os.Rename(to+sfx, from+sfx); !errors.Is(back, fs.ErrNotExist) {
				err = errors.Join(err, back)
			}
		}
		return err
	}
	return nil
}

// databaseFiles are what the names of a database's files end with.
var databaseFiles = []string{"", "-wal", "-shm"}
