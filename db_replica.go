package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/peer"
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

// errChecksum reports an entry that does not lead to the checksum it promises.
var errChecksum = errors.New("checksum differs")

// apply takes one LTX file of size bytes from r into the log, then into the
// files. db.mu is not held while r is read, which may be a network.
func (db *DB) apply(ctx context.Context, r io.Reader, size int64) error {
	db.ingest.Lock()
	defer db.ingest.Unlock()
	if err := db.dropUnfinishedLoad(); err != nil {
		return err
	}
	// What is prepared is waited for on disk.
	known, r, err := db.known(io.LimitReader(r, size), size)
	if err != nil {
		return err
	}
	if !known { // else this node made it, under the primary's lock
		e, err := db.txlog.Import(r, size, db.hold.Load() != AllDecided)
		if err != nil {
			return err
		}
		if err := db.epochList.note(e, e.Min > 1); err != nil {
			return err
		}
	}
	_, err = db.catchUp(ctx)
	return err
}

// catchUp applies the entries that are in the log and not in the files, and
// returns the position from which the primary is to go on: zero when the files
// cannot be brought to any.
func (db *DB) catchUp(ctx context.Context) (Pos, error) {
	if err := db.takePeer(ctx); err != nil {
		return Pos{}, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer == nil {
		return Pos{}, ErrDatabaseNotFound
	}
	if b := db.borrowed.Load(); b != nil {
		if db.foreign(b) {
			b.lose(fmt.Errorf("%w: the primary goes on without this node", ErrHaltLost))
		}
		return db.wantedPosLocked(), nil // applied when local programs are out
	}
	if db.load != nil {
		if err := db.goOnLoading(ctx); err != nil {
			return Pos{}, err
		}
		return db.wantedPosLocked(), nil
	}
	entries, ok := db.unapplied()
	if !ok {
		db.stale = true
		return db.noPos(), nil
	}
	for len(entries) > 0 && entries[0].Max <= db.hold.Load() {
		e := entries[0]
		if n := takenBack(entries, db.hold.Load()); n > 0 {
			// Nobody is to see it: the files are what they were before it already.
			e, entries = entries[n], entries[n:]
			if err := db.passOver(e); err != nil {
				return Pos{}, err
			}
		} else if err := db.applyEntry(ctx, e); err != nil {
			db.stale = db.stale || errors.Is(err, errChecksum)
			return Pos{}, err
		}
		entries = entries[1:]
	}
	return db.wantedPosLocked(), nil
}

// takenBack returns the index of the entry that takes the first one back, with all between; 0: none does. Entries
// behind hold are not looked at.
func takenBack(entries []ltxlog.Entry, hold uint64) int {
	for i := 1; i < len(entries) && i < maxBack && entries[i].Max <= hold; i++ {
		if entries[0].Pre != 0 && entries[i].Post == entries[0].Pre {
			return i
		}
	}
	return 0
}

// passOver makes the end of e the position of files that are there already. db.mu is held.
func (db *DB) passOver(e ltxlog.Entry) error {
	if db.sums.Sum() != e.Post || db.sums.Count() != e.Commit || db.sums.PageSize() != e.PageSize {
		return fmt.Errorf("%w at %016x: have %016x and %d pages, want %016x and %d", errChecksum, e.Max, db.sums.Sum(), db.sums.Count(), e.Post, e.Commit)
	}
	if err := db.sums.Mark(e.Max); err != nil {
		return err
	}
	db.publishAt(e)
	db.store.MarkDirty(db.id)
	return nil
}

// unapplied returns the entries of the log that the files lack; false when the
// log does not lead from the files to its head. db.mu is held.
func (db *DB) unapplied() ([]ltxlog.Entry, bool) {
	pos := db.Pos()
	if head, ok := db.txlog.Head(); ok && !db.stale {
		switch {
		case head.Max == pos.TXID && head.Post == pos.Chksum:
			return nil, true
		case head.Min == pos.TXID+1 && head.Pre == pos.Chksum:
			return []ltxlog.Entry{head}, true
		}
	}
	entries := db.txlog.Entries()
	snapshot := len(entries) == 1 && entries[0].Min == 1
	if db.stale {
		// Only what holds every page can be applied to files of unknown state.
		return entries, snapshot
	}
	if pos.IsZero() && (len(entries) == 0 || entries[0].Min == 1) {
		return entries, true
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].Max == pos.TXID && entries[i].Post == pos.Chksum {
			return entries[i+1:], true
		}
	}
	return entries, snapshot
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

// applyEntry makes an entry of the log visible to readers. db.mu is held.
func (db *DB) applyEntry(ctx context.Context, e ltxlog.Entry) error {
	kept := db.store.keptPages()
	defer db.store.pageCopies.Put(kept)
	pgnos, sums, err := db.entryChanges(e, kept)
	if err != nil {
		return err
	}
	if e.Commit == 0 {
		return errors.New("the entry empties the database, which is not understood")
	}
	pages := kept.each(pgnos, e.PageSize)
	if pages == nil {
		pages = db.streamPages(e, pgnos)
	}
	// The peer publishes nothing unless pages returns nil.
	if err := db.peer.Apply(ctx, e.Commit, e.PageSize, pages); err != nil {
		return err
	}
	if err := db.recordApplied(e, pgnos, sums); err != nil {
		return err
	}
	db.store.stats.Applied.Add(1)
	latency := time.Since(e.Timestamp)
	db.store.stats.ApplyLatency.Observe(latency)
	db.counts.applied.Store(int64(latency))
	db.publishAt(e)
	db.store.MarkDirty(db.id)
	db.invalidate(e.PageSize, pgnos)
	return nil
}

// streamPages gives those pages of e that pgnos names.
func (db *DB) streamPages(e ltxlog.Entry, pgnos []uint32) peer.Pages {
	keep := make(map[uint32]struct{}, len(pgnos))
	for _, pgno := range pgnos {
		keep[pgno] = struct{}{}
	}
	return func(yield func(pgno uint32, data []byte) error) error {
		return db.txlog.Stream(e, func(pgno uint32, data []byte) error {
			if _, ok := keep[pgno]; !ok {
				return nil
			}
			return yield(pgno, data)
		})
	}
}

// invalidate tells the store's Invalidator, if it has one, of pages that were
// applied: one call for each run of them. pgnos is ascending, db.mu is held.
func (db *DB) invalidate(pageSize uint32, pgnos []uint32) {
	if db.store.Invalidator == nil {
		return
	}
	for len(pgnos) > 0 {
		n := 1
		for n < len(pgnos) && pgnos[n] == pgnos[0]+uint32(n) {
			n++
		}
		off, size := int64(pgnos[0]-1)*int64(pageSize), int64(n)*int64(pageSize)
		if err := db.store.Invalidator.InvalidateDB(db, off, size); err != nil {
			// The pages are applied: a cache that could not be told is not a reason to stop.
			db.log().Error("a cache of the database is not invalidated", "offset", off, "size", size, "error", err)
		}
		pgnos = pgnos[n:]
	}
}

// recordApplied brings the page checksums to the end of e. db.mu is held.
func (db *DB) recordApplied(e ltxlog.Entry, pgnos []uint32, sums []uint64) error {
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
	if db.stale {
		if err := db.recovered(); err != nil {
			return err
		}
	}
	db.stale = false
	return nil
}

// publishAt makes the end of e the position that others see: readers are there.
func (db *DB) publishAt(e ltxlog.Entry) {
	db.pos.Store(&Pos{TXID: e.Max, Chksum: e.Post})
	db.epoch.Store(e.Epoch)
}

// entryChanges returns the pages of e that differ from what is here, with
// their checksums, after checking that e leads to the checksum it promises. It
// puts the pages into kept if they fit.
func (db *DB) entryChanges(e ltxlog.Entry, kept *pageCopies) (pgnos []uint32, sums []uint64, err error) {
	snapshot := e.Min == 1
	samePages := db.sums.PageSize() == e.PageSize && !db.stale
	rolling := uint64(ltx.ChecksumFlag)
	err = db.txlog.Stream(e, func(pgno uint32, data []byte) error {
		sum := pagesum.Page(pgno, data)
		rolling ^= sum &^ uint64(ltx.ChecksumFlag)
		if snapshot && samePages && pgno <= db.sums.Count() && db.sums.Get(pgno) == sum {
			return nil
		}
		pgnos, sums = append(pgnos, pgno), append(sums, sum)
		kept.add(data)
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
		return nil, nil, fmt.Errorf("%w after %016x: got %016x, want %016x: a snapshot is fetched", errChecksum, e.Max, rolling, e.Post)
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
