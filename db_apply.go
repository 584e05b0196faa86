package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/peer"
)

// This file brings what a replica was sent into its log, and from there to its readers.

// errChecksum reports an entry that does not lead to the checksum it promises.
var errChecksum = errors.New("checksum differs")

// apply takes one LTX file of size bytes from r into the log, then into the files.
func (db *DB) apply(ctx context.Context, r io.Reader, size int64) error {
	if err := db.receive(r, size); err != nil {
		return err
	}
	_, err := db.catchUp(ctx)
	return err
}

// receive takes one LTX file of size bytes from r into the log. db.mu is not held: r may be a network.
func (db *DB) receive(r io.Reader, size int64) error {
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
	return nil
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
		if db.load != nil {
			return db.wantedPosLocked(), nil
		}
		// The log may lead on from the base that is whole now.
	}
	entries, ok := db.unapplied()
	if !ok {
		db.stale = true
		return db.noPos(), nil
	}
	for hold := db.hold.Load(); len(entries) > 0 && entries[0].Max <= hold; {
		if n := takenBack(entries, hold); n > 0 && entries[0].Max > db.maybeSeen {
			// Nobody is to see it: the files are what they were before it already.
			if err := db.passOver(entries[n]); err != nil {
				return Pos{}, err
			}
			entries = entries[n+1:]
			continue
		}
		n := together(entries, hold, db.maybeSeen)
		if err := db.applyEntries(ctx, entries[:n]); err != nil {
			db.stale = db.stale || errors.Is(err, errChecksum)
			return Pos{}, err
		}
		entries = entries[n:]
	}
	return db.wantedPosLocked(), nil
}

// maxTogether bounds the bytes of entries that become visible together. Their pages, which are about four times as much,
// are to fit into pageCopies.
const maxTogether = maxPageCopies / 4

// together returns how many entries, from the first on, are shown at once: of those that nobody has waited for, readers
// see the last. Entries behind hold are not shown. Those up to seen were to be shown together before.
func together(entries []ltxlog.Entry, hold, seen uint64) int {
	first, size, n := entries[0], entries[0].Size, 1
	for ; n < len(entries); n++ {
		e := entries[n]
		size += e.Size
		alone := first.Min == 1 || e.Min == 1 || first.Commit == 0 || e.Commit == 0 || e.PageSize != first.PageSize
		if alone || e.Max > hold || size > maxTogether || e.Max > seen && takenBack(entries[n:], hold) > 0 {
			break
		}
	}
	return n
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
		if head.Min == pos.TXID+1 && head.Pre == pos.Chksum {
			return []ltxlog.Entry{head}, true
		}
		if entries, ok := db.txlog.After(pos.TXID, pos.Chksum); ok {
			return entries, true
		}
	}
	entries := db.txlog.Entries()
	if !db.stale && pos.IsZero() && (len(entries) == 0 || entries[0].Min == 1) {
		return entries, true
	}
	// Only what holds every page can be applied to files of unknown state.
	return entries, len(entries) == 1 && entries[0].Min == 1
}

// leadsOn reports whether the log goes on from what the files hold. From a snapshot on it does not, until that is shown:
// what else comes may wait for company, but not behind one.
func (db *DB) leadsOn() bool {
	return !db.isStale() && db.isLogged(db.Pos())
}

// isLogged reports whether an entry of the log ends at pos.
func (db *DB) isLogged(pos Pos) bool {
	e, ok := db.txlog.Find(pos.TXID)
	return ok && e.Max == pos.TXID && e.Post == pos.Chksum
}

// applyEntries makes entries visible to readers, all at once if they can be. db.mu is held.
func (db *DB) applyEntries(ctx context.Context, run []ltxlog.Entry) error {
	kept := db.store.keptPages()
	defer db.store.pageCopies.Put(kept)
	if len(run) > 1 {
		c, ok, err := db.changesOf(run, kept)
		if err != nil {
			return err
		}
		if ok {
			return db.show(ctx, run, c)
		}
	}
	for i := range run {
		kept.reset()
		if err := db.applyEntry(ctx, run[i:i+1], kept); err != nil {
			return err
		}
	}
	return nil
}

// applyEntry makes the entry in run visible to readers. db.mu is held.
func (db *DB) applyEntry(ctx context.Context, run []ltxlog.Entry, kept *pageCopies) error {
	e := run[0]
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
	return db.show(ctx, run, changes{pgnos, sums, pages})
}

// changes are the pages that entries have changed.
type changes struct {
	pgnos []uint32 // ascending
	sums  []uint64
	pages peer.Pages
}

// show makes c, which run has changed, visible to readers. db.mu is held.
func (db *DB) show(ctx context.Context, run []ltxlog.Entry, c changes) error {
	last := run[len(run)-1]
	db.maybeSeen = last.Max
	// The peer publishes nothing unless pages returns nil.
	if err := db.peer.Apply(ctx, last.Commit, last.PageSize, c.pages); err != nil {
		return err
	}
	if err := db.recordApplied(last, c.pgnos, c.sums); err != nil {
		return err
	}
	db.maybeSeen = 0
	for _, e := range run {
		latency := time.Since(e.Timestamp)
		db.store.stats.ApplyLatency.Observe(latency)
		db.counts.applied.Store(int64(latency))
	}
	db.store.stats.Applied.Add(uint64(len(run)))
	db.publishAt(last)
	db.store.MarkDirty(db.id)
	db.invalidate(last.PageSize, c.pgnos)
	return nil
}

// changesOf returns what several entries change together: of each page the last. Not ok: one by one they may lead where
// this does not, or the pages do not fit into kept.
func (db *DB) changesOf(run []ltxlog.Entry, kept *pageCopies) (c changes, ok bool, err error) {
	last := run[len(run)-1]
	var slots []int // in kept, of c.pgnos
	for _, e := range run {
		err := db.txlog.Stream(e, func(pgno uint32, data []byte) error {
			i, found := slices.BinarySearch(c.pgnos, pgno)
			switch {
			case pgno > last.Commit || kept.spilt:
			case found:
				copy(kept.page(slots[i], e.PageSize), data)
			default:
				c.pgnos, slots = slices.Insert(c.pgnos, i, pgno), slices.Insert(slots, i, len(slots))
				kept.add(data)
			}
			return nil
		})
		if err != nil {
			return changes{}, false, err
		}
	}
	if kept.spilt {
		return changes{}, false, nil
	}
	c.sums = make([]uint64, len(c.pgnos))
	for i, pgno := range c.pgnos {
		c.sums[i] = pagesum.Page(pgno, kept.page(slots[i], last.PageSize))
	}
	c.pages = func(yield func(pgno uint32, data []byte) error) error {
		for i, pgno := range c.pgnos {
			if err := yield(pgno, kept.page(slots[i], last.PageSize)); err != nil {
				return err
			}
		}
		return nil
	}
	return c, db.sums.PageSize() == last.PageSize && db.sumAfter(c, last.Commit) == last.Post, nil
}

// sumAfter is the rolling checksum after changes to a database of commit pages.
func (db *DB) sumAfter(c changes, commit uint32) uint64 {
	return db.sums.SumAfter(func(yield func(uint32, uint64) bool) {
		for i, pgno := range c.pgnos {
			if !yield(pgno, c.sums[i]) {
				return
			}
		}
	}, commit)
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
		rolling = db.sumAfter(changes{pgnos: pgnos, sums: sums}, e.Commit)
	}
	if rolling != e.Post {
		return nil, nil, fmt.Errorf("%w after %016x: got %016x, want %016x: a snapshot is fetched", errChecksum, e.Max, rolling, e.Post)
	}
	return pgnos, sums, nil
}
