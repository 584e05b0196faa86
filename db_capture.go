package litefs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// change is a set of pages that one or more transactions left behind, before
// it is in the log.
type change struct {
	commits  uint64 // transactions, at least 1
	pageSize uint32
	count    uint32   // pages of the database afterwards
	pgnos    []uint32 // ascending, without the lock page, none above count
	read     func(pgno uint32, b []byte) error
	pages    ltxlog.Pages   // instead of read, where sums are known
	wal      capture.WALPos // where the write-ahead log was read to; zero for none
	walFrom  capture.WALPos
	durable  bool      // on disk before it counts
	at       time.Time // of what takes a transaction back: that of the transaction; zero: now
	sums     []uint64  // of the pages; nil: not known yet

	// confirm is asked when the entry of a durable change is on disk and before it
	// counts: an error takes it back. It may be nil.
	confirm func() error

	// ahead is called when the entry is in the log and others can read it, but not yet on disk: docs/promises.md. nil:
	// nobody is told before.
	ahead func()
}

// notDurable is the error of a change that is in the log, and not known to be on disk.
type notDurable struct{ error }

func (e notDurable) Unwrap() error { return e.error }

// appendBatch logs the transactions that a scan of the write-ahead log found.
// db.mu is held.
func (db *DB) appendBatch(b capture.Batch) error {
	c, done, err := db.changeOf(b, db.wal.file)
	if err != nil {
		return err
	}
	return errors.Join(db.appendChange(c), done())
}

// changeOf is the change that a scan of a write-ahead log found; its pages are read from there until done is called.
// db.mu is held.
func (db *DB) changeOf(b capture.Batch, wal io.ReaderAt) (c change, done func() error, err error) {
	c = change{
		commits:  b.Commits,
		pageSize: b.PageSize,
		count:    b.PageCount,
		pgnos:    make([]uint32, 0, len(b.Pages)),
		wal:      b.To,
		walFrom:  b.From,
	}
	frames := make(map[uint32]uint32, len(b.Pages))
	for _, p := range b.Pages {
		c.pgnos = append(c.pgnos, p.Pgno)
		frames[p.Pgno] = p.Frame
	}
	// Pages that the database grew by and nobody wrote (free pages of the same
	// transaction): what a reader finds there is the file's bytes, or zeros.
	grown := false
	for pgno := db.sums.Count() + 1; pgno <= b.PageCount; pgno++ {
		if _, ok := frames[pgno]; !ok && pgno != sqlitefile.LockPgno(b.PageSize) {
			c.pgnos = append(c.pgnos, pgno)
			grown = true
		}
	}
	var file *os.File
	done = func() error { return nil }
	if grown {
		slices.Sort(c.pgnos)
		if file, err = os.Open(db.DatabasePath()); err != nil {
			return c, nil, fmt.Errorf("open the database: %w", err)
		}
		done = file.Close
	}
	c.read = func(pgno uint32, buf []byte) error {
		if frame, ok := frames[pgno]; ok {
			return capture.ReadPage(wal, frame, b.PageSize, buf)
		}
		return readFilePage(file, pgno, buf)
	}
	return c, done, nil
}

// appendChange writes c to the log, then to the page checksums, then publishes
// the new position. On an error nothing has changed. db.mu is held.
func (db *DB) appendChange(c change) error {
	head, _ := db.txlog.Head()
	if c.pageSize != db.sums.PageSize() {
		if head.Max > 0 {
			return db.appendSnapshot(c)
		}
		if err := db.sums.SetPageSize(c.pageSize); err != nil {
			return fmt.Errorf("page checksums: %w", err)
		}
	}
	kept := db.store.keptPages()
	defer db.store.pageCopies.Put(kept)
	if c.sums == nil {
		if err := c.readOnce(kept); err != nil {
			return err
		}
	}
	sums, err := db.hashPages(c)
	if err != nil {
		return err
	}
	post := db.sums.SumAfter(func(yield func(uint32, uint64) bool) {
		for i, pgno := range c.pgnos {
			if !yield(pgno, sums[i]) {
				return
			}
		}
	}, c.count)
	hdr := db.entryHeader(c, head)
	if err := db.epochList.note(ltxlog.Entry{Epoch: hdr.Epoch, Min: head.Max + 1}, true); err != nil {
		return err
	}
	undo, err := db.reserveSums(c.count)
	if err != nil {
		return err
	}
	var late notDurable
	if err := db.appendEntry(hdr, c, post); err != nil && !errors.As(err, &late) {
		return errors.Join(fmt.Errorf("write the log: %w", err), undo())
	}
	for i, pgno := range c.pgnos {
		if err := db.sums.Set(pgno, sums[i]); err != nil {
			return db.sumsFailed(err)
		}
	}
	if err := db.sums.Resize(c.count); err != nil {
		return db.sumsFailed(err)
	}
	if err := db.sums.Mark(hdr.Max); err != nil {
		return db.sumsFailed(err)
	}
	db.store.stats.Captures.Add(1)
	db.store.stats.Commits.Add(c.commits)
	db.counts.commits.Add(c.commits)
	db.publish()
	db.store.MarkDirty(db.id)
	if late.error != nil {
		return fmt.Errorf("write the log: %w", late)
	}
	return nil
}

// entryHeader is the header of an entry that holds c and comes after head.
func (db *DB) entryHeader(c change, head ltxlog.Entry) ltxlog.Header {
	hdr := ltxlog.Header{
		Min:       head.Max + 1,
		Max:       head.Max + c.commits,
		Pre:       head.Post, // 0 for the first entry of a log, which holds every page
		Commit:    c.count,
		PageSize:  c.pageSize,
		Epoch:     db.store.reign.Load(),
		Timestamp: time.Now(),
	}
	if u := db.undecided; u != nil && u.journal && u.refused {
		c.at = head.Timestamp // SQLite rolls back what was refused
	}
	if !c.at.IsZero() {
		hdr.Timestamp = c.at
	}
	if c.wal.Frame == 0 {
		return hdr
	}
	// Recovery reads the end of this range, and whether there is one.
	from := c.walFrom.Frame
	if c.walFrom.Salt1 != c.wal.Salt1 || c.walFrom.Salt2 != c.wal.Salt2 || from == c.wal.Frame {
		from = 0
	}
	hdr.Salt1, hdr.Salt2 = c.wal.Salt1, c.wal.Salt2
	hdr.WALOffset = sqlitefile.FrameOffset(from+1, c.pageSize)
	hdr.WALSize = sqlitefile.FrameOffset(c.wal.Frame+1, c.pageSize) - hdr.WALOffset
	return hdr
}

// appendEntry adds the entry of c to the log.
func (db *DB) appendEntry(hdr ltxlog.Header, c change, post uint64) error {
	if c.ahead != nil {
		_, added, err := db.txlog.AppendAhead(hdr, db.pageSeq(c), post, c.ahead)
		if added && err != nil {
			return notDurable{err}
		}
		return err
	}
	if c.confirm != nil {
		_, err := db.txlog.AppendConfirmed(hdr, db.pageSeq(c), post, c.confirm)
		return err
	}
	_, err := db.txlog.Append(hdr, db.pageSeq(c), post, c.durable)
	return err
}

// pageSeq gives the pages of c to the log's encoder.
func (db *DB) pageSeq(c change) ltxlog.Pages {
	if c.pages != nil {
		return c.pages
	}
	return func(yield func(pgno uint32, data []byte) error) error {
		b := db.page(c.pageSize)
		for _, pgno := range c.pgnos {
			if err := c.read(pgno, b); err != nil {
				return err
			}
			if err := yield(pgno, b); err != nil {
				return err
			}
		}
		return nil
	}
}

// hashPages returns the checksum of each page of c.
func (db *DB) hashPages(c change) ([]uint64, error) {
	if c.sums != nil {
		return c.sums, nil
	}
	sums := make([]uint64, len(c.pgnos))
	b := db.page(c.pageSize)
	for i, pgno := range c.pgnos {
		if err := c.read(pgno, b); err != nil {
			return nil, err
		}
		sums[i] = pagesum.Page(pgno, b)
	}
	db.store.stats.PageHashes.Add(uint64(len(sums)))
	return sums, nil
}

// page returns a buffer of one page. db.mu is held.
func (db *DB) page(size uint32) []byte {
	if len(db.buf) != int(size) {
		db.buf = make([]byte, size)
	}
	return db.buf
}

// sumsFailed is the end of a change that is in the log but not in the page
// checksums: the log is right, so the checksums are brought up from it at the
// next start. Until then this database takes no more captures, whose checksums
// would be wrong.
func (db *DB) sumsFailed(err error) error {
	db.sumsErr = fmt.Errorf("page checksums are behind the log until the next start: %w", err)
	db.unproved.Store(true)
	return db.sumsErr
}

// reserveSums makes room for the checksums of count pages, so that nothing is
// left that a full disk can refuse once the change is in the log. undo takes it
// back when the log refuses.
func (db *DB) reserveSums(count uint32) (undo func() error, err error) {
	if db.sumsErr != nil {
		return nil, db.sumsErr
	}
	old := db.sums.Count()
	if err := db.sums.Resize(max(old, count)); err != nil {
		return nil, fmt.Errorf("page checksums: %w", err)
	}
	return func() error { return db.sums.Resize(old) }, nil
}

// captureGap is the last net: the write-ahead log was changed behind our back,
// so what the application has is compared page by page with what the log has,
// and one entry covers the difference. db.mu is held.
func (db *DB) captureGap(cause error) error {
	db.store.stats.NetGaps.Add(1)
	db.log().Error("the write-ahead log is not the one that was captured; comparing every page", "error", cause)
	size, err := db.wal.size()
	if err != nil {
		return err
	}
	limit, err := db.publishedLimit()
	if err != nil {
		return err
	}
	batch, err := capture.Scan(db.wal.file, size, capture.WALPos{}, limit)
	if err != nil {
		return fmt.Errorf("read the write-ahead log: %w", err)
	}
	old := db.at
	db.at = batch.To
	if err := db.compareAll(1); err != nil {
		db.at = old
		return err
	}
	return nil
}

// compareAll compares every page of the image with its checksum and logs the
// difference as one change of so many commits. ErrNotDatabase: the file has no
// header. db.mu is held.
func (db *DB) compareAll(commits uint64) error {
	img, err := db.openImage()
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	if err := db.appendDifference(img, commits); err != nil {
		return err
	}
	db.allDirty = false
	clear(db.dirty)
	return nil
}

// appendDifference logs the pages of the image that are not those on record.
func (db *DB) appendDifference(img *image, commits uint64) error {
	if img.pageSize != db.sums.PageSize() {
		return db.appendChange(db.wholeChange(img, commits))
	}
	pgnos, err := db.differing(img)
	if err != nil || len(pgnos) == 0 && img.count == db.sums.Count() {
		return err
	}
	return db.appendChange(change{
		commits: commits, pageSize: img.pageSize, count: img.count,
		pgnos: pgnos, read: img.readPage, durable: true, wal: db.at, walFrom: db.at,
	})
}

// wholeChange is a change that holds every page of the image.
func (db *DB) wholeChange(img *image, commits uint64) change {
	pgnos := make([]uint32, 0, img.count)
	for pgno := uint32(1); pgno <= img.count; pgno++ {
		if pgno != sqlitefile.LockPgno(img.pageSize) {
			pgnos = append(pgnos, pgno)
		}
	}
	return change{commits: commits, pageSize: img.pageSize, count: img.count, pgnos: pgnos, read: img.readPage, durable: true, wal: db.at, walFrom: db.at}
}

// differing returns the pages of the image whose checksum is not the recorded
// one, ascending.
func (db *DB) differing(img *image) ([]uint32, error) {
	sums := make([]uint64, img.count+1)
	err := pagesum.Compute(img, img.pageSize, img.count, hashWorkers, func(pgno uint32, sum uint64) {
		sums[pgno] = sum
	})
	if err != nil {
		return nil, fmt.Errorf("hash the database: %w", err)
	}
	db.store.stats.PageHashes.Add(uint64(img.count))
	var pgnos []uint32
	for pgno := uint32(1); pgno <= img.count; pgno++ {
		if sums[pgno] != db.sums.Get(pgno) && pgno != sqlitefile.LockPgno(img.pageSize) {
			pgnos = append(pgnos, pgno)
		}
	}
	return pgnos, nil
}

// hashWorkers hash pages when a whole database is verified.
const hashWorkers = 2

// appendSnapshot logs a change of page size: an LTX chain has one page size,
// so the log begins anew with an entry that holds every page. db.mu is held.
func (db *DB) appendSnapshot(c change) error {
	img, err := db.openImage()
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	if c.wal.Frame > 0 {
		at := db.at
		db.at = c.wal
		err := db.fillImage(img)
		db.at = at
		if err != nil {
			return err
		}
	}
	whole := db.wholeChange(img, c.commits)
	whole.wal = c.wal
	return db.replaceLog(whole)
}

// replaceLog begins the log anew with c, which holds every page. db.mu is held.
func (db *DB) replaceLog(c change) error {
	head, _ := db.txlog.Head()
	sums, err := db.hashPages(c)
	if err != nil {
		return err
	}
	post := uint64(ltx.ChecksumFlag)
	for _, sum := range sums {
		post ^= sum &^ uint64(ltx.ChecksumFlag)
	}
	c.walFrom = capture.WALPos{} // all of the write-ahead log is in it
	hdr := db.entryHeader(c, head)
	hdr.Min, hdr.Pre = 1, 0
	if err := db.epochList.note(ltxlog.Entry{Epoch: hdr.Epoch, Min: head.Max + 1}, true); err != nil {
		return err
	}
	undo, err := db.reserveSums(c.count)
	if err != nil {
		return err
	}
	if _, err := db.txlog.Append(hdr, db.pageSeq(c), post, true); err != nil {
		return errors.Join(fmt.Errorf("write the log: %w", err), undo())
	}
	if err := db.resetSums(c.pageSize, c.count, c.pgnos, sums); err != nil {
		return db.sumsFailed(err)
	}
	if err := db.sums.Mark(hdr.Max); err != nil {
		return db.sumsFailed(err)
	}
	db.publish()
	db.store.MarkDirty(db.id)
	return nil
}

// resetSums replaces all page checksums.
func (db *DB) resetSums(pageSize, count uint32, pgnos []uint32, sums []uint64) error {
	if err := db.sums.SetPageSize(pageSize); err != nil {
		return err
	}
	for i, pgno := range pgnos {
		if err := db.sums.Set(pgno, sums[i]); err != nil {
			return err
		}
	}
	return db.sums.Resize(count)
}
