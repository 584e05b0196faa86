package litefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/sqlitefile"
)

// walState says how the write-ahead log on disk relates to the log's head.
type walState int

const (
	// walBehind: there is none, or an older or shorter one than the head was
	// captured from. The log is ahead, or equal: what was captured was made
	// durable before the write-ahead log could be restarted or removed.
	walBehind walState = iota
	// walJoined: the one that the head was captured from, and all of it.
	walJoined
	// walNews: one that began after the head was captured.
	walNews
)

// relate decides walState. head is the newest log entry, end the last frame
// that the checksum chain of the write-ahead log proves, n the frame that the
// head was captured up to.
func relate(head ltxlog.Entry, hdr sqlitefile.WALHeader, end, n uint32) walState {
	switch {
	case head.Salt1 == hdr.Salt1 && head.Salt2 == hdr.Salt2 && n > 0:
		if end < n {
			return walBehind
		}
		return walJoined
	case n > 0 && hdr.Salt1+1 == head.Salt1:
		// A restart adds one to the first salt (SQLite: walRestartHdr). The
		// restart itself was lost with the power, the log entry was not.
		return walBehind
	default:
		return walNews
	}
}

// recover brings the log, the checksums and the files together again. The tree
// is not in use. docs/crash-table.md lists the cases. db.mu is held.
func (db *DB) recover() error {
	if _, err := os.Stat(db.DatabasePath()); errors.Is(err, fs.ErrNotExist) {
		return errFileGone
	} else if err != nil {
		return err
	}
	for _, d := range db.txlog.Dropped() {
		db.log().Warn("a log entry at the end was torn and is dropped", "txid", d.Min, "durable", d.Durable, "error", d.Err)
	}
	stamp := db.sums.Stamp()
	_, logged := db.txlog.Head()
	sumsOK, err := db.reconcileSums()
	if err != nil {
		return err
	}
	if db.store.lastRole == RoleReplica {
		return db.recoverReplica(logged && sumsOK, stamp.Clean || stamp.SameBoot && stamp.TXID == db.headTXID())
	}
	if !sumsOK {
		return db.restartLog(logged)
	}
	return db.recoverPrimary(stamp.Clean, stamp.SameBoot)
}

func (db *DB) headTXID() uint64 {
	head, _ := db.txlog.Head()
	return head.Max
}

// reconcileSums brings the page checksums to the head of the log. They may lag
// by the entries written just before a crash, and after a power cut by any
// entry still in the log: entries leave the log only after the checksums are
// on disk. It reports whether the sums prove to be those of the head.
func (db *DB) reconcileSums() (bool, error) {
	head, ok := db.txlog.Head()
	if !ok {
		return false, db.sums.SetPageSize(0)
	}
	stamp := db.sums.Stamp()
	matches := func() bool {
		return db.sums.PageSize() == head.PageSize && db.sums.Count() == head.Commit && db.sums.Sum() == head.Post
	}
	if stamp.TXID == head.Max && matches() {
		return true, nil
	}
	from := stamp.TXID
	if !stamp.SameBoot || stamp.TXID > head.Max {
		from = 0
	}
	if err := db.replaySums(from); err != nil {
		return false, err
	}
	if !matches() {
		if err := db.replaySums(0); err != nil {
			return false, err
		}
	}
	if !matches() {
		return false, nil
	}
	return true, db.sums.Mark(head.Max)
}

// replaySums sets the checksums of the pages in every entry after txid.
func (db *DB) replaySums(txid uint64) error {
	for _, e := range db.txlog.Entries() {
		if e.Max <= txid {
			continue
		}
		if e.Min == 1 || e.PageSize != db.sums.PageSize() {
			if err := db.sums.SetPageSize(0); err != nil {
				return err
			}
			if err := db.sums.SetPageSize(e.PageSize); err != nil {
				return err
			}
		}
		err := db.txlog.Pages(e, func(pgno uint32, data []byte) error {
			return db.sums.Set(pgno, uint64(ltx.ChecksumPage(pgno, data)))
		})
		if err == nil {
			err = db.sums.Resize(e.Commit)
		}
		if err != nil {
			return fmt.Errorf("read log entry %016x: %w", e.Min, err)
		}
	}
	return nil
}

// restartLog begins the log anew from the files, because there is none yet or
// because the checksums of the pages cannot be known.
func (db *DB) restartLog(logged bool) error {
	if logged {
		db.log().Error("page checksums do not match the log and cannot be rebuilt from it: the log begins anew with a snapshot of the files")
	}
	db.openWAL()
	if err := db.settleJournal(); err != nil {
		return err
	}
	if err := db.locateAll(); err != nil {
		return err
	}
	img, err := db.openImage()
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	return db.replaceLog(db.wholeChange(img, 1))
}

// recoverPrimary recovers a database that this node wrote last.
func (db *DB) recoverPrimary(clean, sameBoot bool) error {
	hot := journalHot(db.JournalPath())
	db.openWAL()
	state, err := db.locate()
	if err != nil {
		return err
	}
	if err := db.captureFrames0(); err != nil {
		return err
	}
	if clean && !hot {
		return nil
	}
	verify := !sameBoot || hot || db.wal == nil || db.at.Frame == 0
	if !verify {
		return nil
	}
	return db.verifyFiles(hot, state)
}

// captureFrames0 captures what applications wrote while nobody looked.
func (db *DB) captureFrames0() error {
	if db.wal == nil {
		return nil
	}
	return db.captureFrames()
}

// verifyFiles compares every page with its checksum and mends the difference.
func (db *DB) verifyFiles(hot bool, state walState) error {
	pgnos, whole, err := db.compareFiles()
	if err != nil {
		return err
	}
	if hot {
		// The commit of a journal is its removal, and the log has it before.
		// If the files are what the log says, only the removal is missing.
		if len(pgnos) == 0 && !whole {
			db.log().Info("a commit is finished: its journal is removed")
			return db.removeJournal()
		}
		if err := db.settleJournal(); err != nil {
			return err
		}
		if pgnos, whole, err = db.compareFiles(); err != nil {
			return err
		}
	}
	if len(pgnos) == 0 && !whole {
		return nil
	}
	if state == walBehind && !whole && !hot {
		done, err := db.rollForward(pgnos)
		if err != nil || done {
			return err
		}
	}
	db.log().Warn("files changed while nobody looked: the difference is logged", "pages", len(pgnos))
	return db.compareAll(1)
}

// compareFiles returns the pages that differ from the record; whole means that
// the size or the page size does.
func (db *DB) compareFiles() (pgnos []uint32, whole bool, err error) {
	img, err := db.openImage()
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer img.Close() //nolint:errcheck // read only
	if img.pageSize != db.sums.PageSize() {
		return nil, true, nil
	}
	// A size that differs shows as pages that differ: the header has it.
	img.count = max(img.count, db.sums.Count())
	pgnos, err = db.differing(img)
	return pgnos, false, err
}

// locate finds where in the write-ahead log on disk the log's head ends.
func (db *DB) locate() (walState, error) {
	db.at = capture.WALPos{}
	if db.wal == nil {
		return walBehind, nil
	}
	hdr, err := db.walHeader()
	if errors.Is(err, sqlitefile.ErrNoWAL) {
		return walBehind, nil
	}
	if err != nil {
		return walBehind, err
	}
	head, _ := db.txlog.Head()
	var n uint32
	if head.Salt1 != 0 || head.Salt2 != 0 {
		n = sqlitefile.FrameCount(head.WALOffset+head.WALSize, head.PageSize)
	}
	size, err := db.wal.size()
	if err != nil {
		return walBehind, err
	}
	all, err := capture.Scan(db.wal.file, size, capture.WALPos{}, capture.Limit{})
	if err != nil {
		return walBehind, fmt.Errorf("read the write-ahead log: %w", err)
	}
	state := relate(head, hdr, all.To.Frame, n)
	switch state {
	case walJoined:
		if db.at, err = capture.At(db.wal.file, n); err != nil {
			return state, fmt.Errorf("frame %d of the write-ahead log: %w", n, err)
		}
	case walBehind:
		if all.Commits > 0 {
			db.at = all.To
		}
	}
	return state, nil
}

// locateAll takes every commit of the write-ahead log as captured.
func (db *DB) locateAll() error {
	db.at = capture.WALPos{}
	if db.wal == nil {
		return nil
	}
	size, err := db.wal.size()
	if err != nil {
		return err
	}
	all, err := capture.Scan(db.wal.file, size, capture.WALPos{}, capture.Limit{})
	if err != nil {
		return fmt.Errorf("read the write-ahead log: %w", err)
	}
	if all.Commits > 0 {
		db.at = all.To
	}
	return nil
}

// rollForward writes the pages that the log has and the files lack. It reports
// false, with nothing changed, when the log does not have them all.
func (db *DB) rollForward(pgnos []uint32) (bool, error) {
	where := make(map[uint32]ltxlog.Entry, len(pgnos))
	entries := db.txlog.Entries()
	for _, pgno := range pgnos {
		if pgno > db.sums.Count() {
			continue // cut off below
		}
		found := false
		for i := len(entries) - 1; i >= 0 && !found; i-- {
			data, ok, err := db.txlog.Page(entries[i], pgno)
			if err != nil {
				return false, fmt.Errorf("look for page %d in the log: %w", pgno, err)
			}
			if ok {
				if uint64(ltx.ChecksumPage(pgno, data)) != db.sums.Get(pgno) {
					return false, nil
				}
				where[pgno], found = entries[i], true
			}
		}
		if !found {
			return false, nil
		}
	}
	if err := db.materialise(where); err != nil {
		return false, fmt.Errorf("roll the files forward to the log: %w", err)
	}
	db.log().Info("the files were behind the log and are rolled forward", "pages", len(where), "pos", db.headTXID())
	return true, nil
}

// materialise writes the write-ahead log and then the pages found in the log
// into the database file, durably, and removes the write-ahead log. A crash in
// between leaves files that the next start rolls forward again.
func (db *DB) materialise(where map[uint32]ltxlog.Entry) error {
	img, err := db.openImage()
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		img, err = nil, nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(db.DatabasePath(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = db.writePages(f, img, where)
	if err == nil {
		err = f.Truncate(int64(db.sums.Count()) * int64(db.sums.PageSize()))
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if img != nil {
		err = errors.Join(err, img.Close())
	}
	if err != nil {
		return err
	}
	db.closeWAL()
	db.at = capture.WALPos{}
	for _, path := range []string{db.WALPath(), db.SHMPath()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (db *DB) writePages(f *os.File, img *image, where map[uint32]ltxlog.Entry) error {
	ps := int64(db.sums.PageSize())
	b := make([]byte, ps)
	if img != nil {
		for pgno := range img.frames {
			if pgno > db.sums.Count() || int64(img.pageSize) != ps {
				continue
			}
			if err := img.readPage(pgno, b); err != nil {
				return err
			}
			if _, err := f.WriteAt(b, int64(pgno-1)*ps); err != nil {
				return err
			}
		}
	}
	for pgno, e := range where {
		data, ok, err := db.txlog.Page(e, pgno)
		if err != nil || !ok {
			return fmt.Errorf("page %d of log entry %016x: found %t: %w", pgno, e.Min, ok, err)
		}
		if _, err := f.WriteAt(data, int64(pgno-1)*ps); err != nil {
			return err
		}
	}
	return nil
}

// recoverReplica recovers a database whose transactions came from a primary.
// Its files may lag behind its log, never the reverse.
func (db *DB) recoverReplica(sumsOK, trusted bool) error {
	db.openWAL()
	if err := db.locateAll(); err != nil {
		return err
	}
	if sumsOK && trusted {
		return nil
	}
	if !sumsOK {
		db.stale = true
		return nil
	}
	pgnos, whole, err := db.compareFiles()
	if err != nil {
		return err
	}
	if whole {
		// An empty file: a replica that stopped before its first snapshot was
		// in place.
		for pgno := uint32(1); pgno <= db.sums.Count(); pgno++ {
			if pgno != sqlitefile.LockPgno(db.sums.PageSize()) {
				pgnos = append(pgnos, pgno)
			}
		}
	}
	if len(pgnos) == 0 {
		return nil
	}
	done, err := db.rollForward(pgnos)
	if err != nil {
		return err
	}
	if !done {
		db.stale = true
		db.log().Warn("files and log do not agree and the log does not have every page: a snapshot is fetched from the primary")
	}
	return nil
}

// settleJournal plays a hot rollback journal back, as SQLite would at its next
// read. A journal whose super-journal is gone belongs to a transaction that
// has committed, and is only removed.
func (db *DB) settleJournal() error {
	if !journalHot(db.JournalPath()) {
		return nil
	}
	j, err := os.Open(db.JournalPath())
	if err != nil {
		return err
	}
	defer j.Close() //nolint:errcheck // read only
	fi, err := j.Stat()
	if err != nil {
		return err
	}
	super, err := sqlitefile.SuperJournalName(j, fi.Size())
	if err != nil {
		return err
	}
	if super != "" && !db.store.superExists(db.Name(), super) {
		return db.removeJournal()
	}
	r, err := sqlitefile.NewJournalReader(j, fi.Size())
	if errors.Is(err, sqlitefile.ErrNoJournal) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := db.playBack(r); err != nil {
		return fmt.Errorf("roll back a transaction that was cut off: %w", err)
	}
	db.log().Info("a transaction that was cut off is rolled back")
	return db.removeJournal()
}

// playBack restores the pages of a journal; the first record of a page counts.
func (db *DB) playBack(r *sqlitefile.JournalReader) error {
	f, err := os.OpenFile(db.DatabasePath(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	ps := int64(r.Header().PageSize)
	seen := make(map[uint32]struct{})
	for err == nil {
		var rec sqlitefile.Record
		if rec, err = r.Next(); err != nil {
			break
		}
		if _, dup := seen[rec.Pgno]; dup {
			continue
		}
		seen[rec.Pgno] = struct{}{}
		_, err = f.WriteAt(rec.Page, int64(rec.Pgno-1)*ps)
	}
	if errors.Is(err, io.EOF) {
		err = f.Truncate(int64(r.Header().InitialPages) * ps)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// removeJournal removes the rollback journal durably.
func (db *DB) removeJournal() error {
	if err := os.Remove(db.JournalPath()); err != nil {
		return err
	}
	return syncDir(db.store.FilesDir())
}
