package litefs

import (
	"errors"
	"slices"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
)

// syncInterval is how long a log entry may wait to be made durable when nothing
// asks for it earlier. The write-ahead log has its pages until then.
const syncInterval = time.Second

// startMaintenance keeps the logs durable and within their bounds.
func (s *Store) startMaintenance() {
	s.goRun(func() {
		sync := time.NewTicker(syncInterval)
		defer sync.Stop()
		retain := time.NewTicker(s.Retention.Interval)
		defer retain.Stop()
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-sync.C:
				for _, db := range s.DBs() {
					db.syncLog()
				}
			case <-retain.C:
				for _, db := range s.DBs() {
					db.retain(s.Retention)
				}
			}
		}
	})
	if s.ScrubInterval > 0 {
		s.goRun(s.scrubLoop)
	}
	if s.StrictVerify {
		s.goRun(s.verifyLoop)
	}
}

// syncLog makes the log durable. It does not take db.mu while the disk works,
// so that no capture waits for it.
func (db *DB) syncLog() {
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	db.mu.Lock()
	txlog, closed := db.txlog, db.closed
	db.mu.Unlock()
	if closed || txlog == nil {
		return
	}
	if db.behind.Load() {
		db.poke() // the next commit may be long in coming
	}
	if err := txlog.MakeDurable(); err != nil {
		db.log().Error("cannot make the log durable; tried again in a moment", "error", err)
	}
}

// retain removes old entries and merges small ones. Files and page checksums
// are made durable first: after a power cut both are mended from the entries
// that are left, so no entry may go before what it changed is on disk.
func (db *DB) retain(r Retention) {
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	applied, ok := db.removeOld(r)
	if !ok {
		return
	}
	// Without ingest: merging many entries takes seconds, and a replica applies
	// meanwhile. What the files still lack is not merged, for it may be read now.
	before := db.compactBefore(r)
	if before == 0 || before > applied {
		before = applied
	}
	needs := db.store.archiveNeeds(db)
	if slices.Contains(needs, 1) {
		return // an archive ends somewhere, and nobody knows where yet: that must stay the end of an entry
	}
	if _, err := db.txlog.Compact(ltxlog.Compaction{Before: before, Cuts: append(db.store.replicas.boundaries(db.id), needs...)}); err != nil {
		db.log().Error("cannot compact the log; tried again later", "error", err)
	}
}

// removeOld removes the entries that are too old or too many, and returns the
// TXID after the last that was in the files before; false when the log is to be
// left as it is. db.upkeep is held: the log is not closed.
func (db *DB) removeOld(r Retention) (applied uint64, ok bool) {
	if !db.ingest.TryLock() {
		return 0, false // an entry is on its way in; next time
	}
	defer db.ingest.Unlock()
	db.mu.Lock()
	txlog, sums, closed := db.txlog, db.sums, db.closed
	pos, loading := db.Pos(), db.load != nil
	db.mu.Unlock()
	if closed || txlog == nil || loading {
		return 0, false // what a load needs of the log stays as it is
	}
	if err := errors.Join(db.syncFiles(), sums.Sync()); err != nil {
		db.log().Error("cannot make files and page checksums durable: the log keeps its old entries", "error", err)
		return 0, false
	}
	applied = pos.TXID + 1
	// That bound is hard: what left the log is in no archive.
	archive := slices.Min(append(db.store.archiveNeeds(db), applied))
	keepFrom := archive
	if from := db.store.replicas.neededFrom(db.id); from > 0 {
		keepFrom = min(keepFrom, from)
	}
	n, bytes, err := txlog.Retain(db.retainAt(), ltxlog.Retention{MaxAge: r.Age, MaxBytes: r.Bytes, KeepFrom: keepFrom})
	if err == nil && keepFrom < archive {
		// A replica that falls ever further behind does not fill the disk.
		var more int
		var moreBytes int64
		more, moreBytes, err = txlog.Retain(db.retainAt(), ltxlog.Retention{MaxBytes: 2 * r.Bytes, KeepFrom: archive})
		n, bytes = n+more, bytes+moreBytes
	}
	if err != nil {
		db.log().Error("cannot remove old log entries; tried again later", "error", err)
		return 0, false
	}
	if n > 0 {
		db.counts.reaped.Add(uint64(n))
		db.log().Debug("old log entries removed", "entries", n, "bytes", bytes)
	}
	return applied, true
}

// retainAt is the time that entries are old by. On a replica that is the time of
// the newest one: while its primary is down nothing grows old that the primary
// may have lost with its power.
func (db *DB) retainAt() time.Time {
	now := time.Now()
	if head, ok := db.txlog.Head(); ok && db.store.Role() == RoleReplica && head.Timestamp.Before(now) {
		return head.Timestamp
	}
	return now
}

// compactBefore protects entries younger than a compaction interval: a
// follower that is connected has its position among them, and a position that
// falls inside a merged entry needs a snapshot to go on.
func (db *DB) compactBefore(r Retention) uint64 {
	young := db.retainAt().Add(-r.Interval)
	for _, e := range db.txlog.Entries() {
		if e.Timestamp.After(young) {
			return e.Min
		}
	}
	return 0
}
