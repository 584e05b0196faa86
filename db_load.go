package litefs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/sqlitefile"
)

// load is a base on its way into a database that was empty. Its pages go
// straight into the file, which nobody can read before it is whole: the peer
// holds EXCLUSIVE, and the header comes last. A load outlives the connection
// that it began on, and goes on with the pages that are not there yet.
//
// db.ingest is held over each step, db.mu where the load is looked at by others.
type load struct {
	start BaseStreamFrame
	file  *peer.Load
	begun time.Time
	told  time.Time // when the log last heard how far it is; guarded by db.ingest
	bytes int64     // of pages that have come; guarded by db.ingest

	// end is the position up to which the log is needed; 0 while pages come.
	// From then on the log begins at the position of start.
	end     uint64
	applied uint64 // the position up to which the log is in the file
}

// tellLoad is how often the log hears how far a load is.
const tellLoad = 10 * time.Second

// loadProgress is how many bytes of a load have come, and of how many.
type loadProgress struct{ bytes, size int64 }

var errNotEmpty = errors.New("the database has content, a base is for one that has none")

// beginLoad takes the beginning of a base, or of the rest of one.
func (db *DB) beginLoad(ctx context.Context, start BaseStreamFrame) error {
	if err := db.takePeer(ctx); err != nil {
		return err
	}
	db.ingest.Lock()
	defer db.ingest.Unlock()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer == nil {
		return ErrDatabaseNotFound
	}
	if l := db.load; l != nil {
		if l.end == 0 && start.First <= db.nextToLoad() && l.start.Pos == start.Pos && l.start.PageSize == start.PageSize && l.start.Count == start.Count {
			db.log().Info("the first copy of the database goes on", "from", start.First, "pages", start.Count)
			return nil
		}
		db.log().Warn("the first copy of the database begins anew: the primary cannot continue the one that was cut", "pages", start.Count)
		if err := db.abortLoad(); err != nil {
			return err
		}
	}
	if start.First != 1 {
		return fmt.Errorf("a base from page %d on, which was not asked for", start.First)
	}
	if !db.Pos().IsZero() || db.peer.PageSize() != 0 {
		return errNotEmpty
	}
	if err := db.sums.SetPageSize(start.PageSize); err != nil {
		return err
	}
	if err := errors.Join(db.sums.Resize(0), db.sums.Resize(start.Count)); err != nil {
		return err
	}
	file, err := db.peer.Load(ctx, start.PageSize)
	if err != nil {
		return err
	}
	now := time.Now()
	db.load = &load{start: start, file: file, begun: now, told: now}
	db.loadProgress.Store(&loadProgress{0, int64(start.Count) * int64(start.PageSize)})
	return nil
}

// abortLoad empties the file. db.mu is held.
func (db *DB) abortLoad() error {
	l := db.load
	db.load = nil
	db.loadProgress.Store(nil)
	return errors.Join(l.file.Abort(), db.sums.Resize(0))
}

// dropUnfinishedLoad gives a load up whose pages have not all come: the primary
// sends the log instead.
func (db *DB) dropUnfinishedLoad() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.load == nil || db.load.end != 0 {
		return nil
	}
	return db.abortLoad()
}

// loading returns the load under way, nil for none.
func (db *DB) loading() *load {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.load
}

// nextToLoad returns the first page that has not come. db.mu is held.
func (db *DB) nextToLoad() uint32 {
	start := db.load.start
	for pgno := uint32(1); pgno <= start.Count; pgno++ {
		if db.sums.Get(pgno) == 0 && pgno != sqlitefile.LockPgno(start.PageSize) {
			return pgno
		}
	}
	return start.Count + 1
}

// toContinue returns where a base that was cut began, and the page from which it
// is to go on; false when there is none.
func (db *DB) toContinue() (start Pos, next uint32, ok bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.load == nil || db.load.end != 0 {
		return Pos{}, 0, false
	}
	return db.load.start.Pos, db.nextToLoad(), true
}

// loadPages takes whole pages of a base, from page pgno on.
func (db *DB) loadPages(pgno uint32, data []byte) error {
	db.ingest.Lock()
	defer db.ingest.Unlock()
	l := db.loading()
	if l == nil || l.end != 0 {
		return errors.New("pages of a base that has not begun")
	}
	size := int(l.start.PageSize)
	if n := uint64(len(data) / size); len(data)%size != 0 || n == 0 || pgno == 0 || uint64(pgno)+n-1 > uint64(l.start.Count) {
		return fmt.Errorf("%d bytes of pages from page %d on, of a base of %d pages of %d bytes", len(data), pgno, l.start.Count, size)
	}
	if err := l.file.Write(pgno, data); err != nil {
		return err
	}
	for i := range len(data) / size {
		if err := db.sums.Set(pgno+uint32(i), pagesum.Page(pgno+uint32(i), data[i*size:(i+1)*size])); err != nil {
			return err
		}
	}
	l.bytes += int64(len(data))
	total := int64(l.start.Count) * int64(size)
	db.loadProgress.Store(&loadProgress{l.bytes, total})
	if now := time.Now(); now.Sub(l.told) >= tellLoad {
		l.told = now
		db.log().Info("the first copy of the database comes", "bytes", l.bytes, "of", total)
	}
	return nil
}

// endLoad takes the end of a base: its pages are there, and the log is needed
// up to end.
func (db *DB) endLoad(ctx context.Context, end uint64) error {
	db.ingest.Lock()
	defer db.ingest.Unlock()
	db.mu.Lock()
	defer db.mu.Unlock()
	l := db.load
	if l == nil || l.end != 0 {
		return errors.New("the end of a base that has not begun")
	}
	pos := l.start.Pos
	if end < pos.TXID {
		return fmt.Errorf("a base from transaction %d on ends at %d", pos.TXID, end)
	}
	if err := db.epochList.note(ltxlog.Entry{Epoch: l.start.Epoch, Max: pos.TXID}, false); err != nil {
		return err
	}
	_, err := db.txlog.Begin(ltxlog.Header{
		Min: pos.TXID, Max: pos.TXID, Pre: pos.Chksum, Commit: l.start.Count, PageSize: l.start.PageSize,
		Epoch: l.start.Epoch, Timestamp: time.UnixMilli(l.start.UnixMilli),
	})
	if err != nil {
		return err
	}
	l.end, l.applied = end, pos.TXID
	return db.goOnLoading(ctx)
}

// goOnLoading brings what the log has into the file, and makes a database of it
// when it is whole. db.mu is held.
func (db *DB) goOnLoading(ctx context.Context) error {
	l := db.load
	for _, e := range db.txlog.Entries() {
		if l.end == 0 {
			break
		}
		if e.Min > l.applied {
			if err := db.loadEntry(l, e); err != nil {
				return err
			}
			l.applied = e.Max
		}
		if l.applied >= l.end {
			return db.finishLoad(ctx, e)
		}
	}
	return nil
}

// loadEntry brings one entry into the file.
func (db *DB) loadEntry(l *load, e ltxlog.Entry) error {
	if e.PageSize != l.start.PageSize || e.Commit == 0 {
		return db.failLoad(fmt.Errorf("transaction %d changes the page size from %d to %d, or empties the database", e.Min, l.start.PageSize, e.PageSize))
	}
	err := db.txlog.Stream(e, func(pgno uint32, data []byte) error {
		if err := l.file.Write(pgno, data); err != nil {
			return err
		}
		return db.sums.Set(pgno, pagesum.Page(pgno, data))
	})
	if err != nil {
		return err
	}
	return errors.Join(db.sums.Resize(e.Commit), l.file.Resize(e.Commit))
}

// failLoad gives the load up for good: another one is asked for. db.mu is held.
func (db *DB) failLoad(err error) error {
	return errors.Join(err, db.abortLoad(), db.txlog.TruncateAfter(0))
}

// giveUpLoad is failLoad without a fault of the load, if there is one.
func (db *DB) giveUpLoad() error {
	db.ingest.Lock()
	defer db.ingest.Unlock()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.load == nil {
		return nil
	}
	db.log().Warn("the first copy of the database begins anew: the primary's log does not lead on from it")
	return db.failLoad(nil)
}

// finishLoad makes the database visible at the end of e.
func (db *DB) finishLoad(ctx context.Context, e ltxlog.Entry) error {
	l := db.load
	if got := db.sums.Sum(); got != e.Post {
		return db.failLoad(fmt.Errorf("%w after %016x: got %016x, want %016x: another copy is fetched", errChecksum, e.Max, got, e.Post))
	}
	// A database without a log would be taken for one that came from elsewhere.
	if err := db.txlog.Sync(); err != nil {
		return fmt.Errorf("make the log durable: %w", err)
	}
	if err := l.file.Finish(ctx, e.Commit); err != nil {
		return err
	}
	db.load = nil
	db.loadProgress.Store(nil)
	if err := db.recordApplied(e, nil, nil); err != nil {
		return err
	}
	db.store.stats.Applied.Add(1)
	db.publishAt(e)
	db.store.MarkDirty(db.id)
	if inv := db.store.Invalidator; inv != nil {
		if err := inv.InvalidateDB(db, 0, int64(e.Commit)*int64(e.PageSize)); err != nil {
			db.log().Error("a cache of the database is not invalidated", "error", err)
		}
	}
	elapsed := time.Since(l.begun)
	db.log().Info("the first copy of the database is whole", "pos", db.Pos().String(), "bytes", l.bytes,
		"took", elapsed.Round(time.Millisecond), "MB/s", int(float64(l.bytes)/1e6/max(elapsed.Seconds(), 1e-3)))
	return nil
}
