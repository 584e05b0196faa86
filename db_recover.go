package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/sqlitefile"
)

// Recovery brings the log, the page checksums and the files of one database
// together again before anybody can open it. docs/crash-table.md lists the
// cases. This file decides; db_recover_sums.go proves the checksums,
// db_recover_files.go rolls files forward, db_recover_journal.go plays rollback
// journals back.

// walState says how the write-ahead log on disk relates to the log's head.
type walState int

const (
	// walNone: there is none, or none with a committed frame.
	walNone walState = iota
	// walBehind: an older or a shorter one than the head was captured from.
	// The log is ahead: what was captured was made durable before the
	// write-ahead log could restart, but its own tail never had to be.
	walBehind
	// walJoined: the one that the head was captured from, and all of it.
	walJoined
	// walNews: one that began after the head was captured.
	walNews
)

// relate decides walState for a write-ahead log with committed frames. entries
// are those of the log, end is the last committed frame that the checksum chain
// proves. For walJoined, n is the frame that the head was captured up to.
func relate(entries []ltxlog.Entry, hdr sqlitefile.WALHeader, end uint32) (state walState, n uint32) {
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		switch {
		case e.Salt1 == 0 && e.Salt2 == 0:
			// not captured from a write-ahead log
		case e.Salt1 == hdr.Salt1 && e.Salt2 == hdr.Salt2:
			n = sqlitefile.FrameCount(e.WALOffset+e.WALSize, e.PageSize)
			if i < len(entries)-1 || end < n {
				return walBehind, n
			}
			return walJoined, n
		case e.Salt1 == hdr.Salt1+1:
			// A restart adds one to the first salt (SQLite: walRestartHdr). The
			// restart itself was lost with the power, the log entry was not.
			return walBehind, 0
		}
	}
	return walNews, 0
}

// found is what the last run has left, as seen before recovery changes a thing.
type found struct {
	head   ltxlog.Entry
	logged bool // there is a head

	// clean: the record was closed with files and log on disk and in agreement,
	// and nobody has written to the files since.
	clean bool
	// lost: writes that were not synced may be missing. Otherwise only
	// processes died, and all that they wrote is there.
	lost bool
	// cut: entries at the end of the log are gone, so that files and checksums
	// may be ahead of it by more than the write-ahead log tells.
	cut bool
	// lagging: the log has entries, or a history, that the checksums were never
	// brought up to.
	lagging bool
	hot     bool // there is a rollback journal with a transaction in it
	// wasClean: the stop was clean, whatever has happened to the files since.
	wasClean bool
}

// look reads what the last run has left.
func (db *DB) look() (found, error) {
	var f found
	f.head, f.logged = db.txlog.Head()
	stamp := db.sums.Stamp()
	interrupted, err := db.recovering()
	if err != nil {
		return found{}, err
	}
	f.cut = len(db.txlog.Dropped()) > 0 || stamp.TXID > f.head.Max
	f.lagging = stamp.TXID < f.head.Max || !db.sumsMatch(f.head)
	untouched, err := db.untouched()
	if err != nil {
		return found{}, err
	}
	f.clean = stamp.Clean && untouched && f.logged && !f.cut && !f.lagging && !interrupted
	f.wasClean = stamp.Clean
	f.lost = interrupted || !stamp.SameBoot && !stamp.Clean || db.store.cut && !f.clean
	f.hot = journalHot(db.JournalPath())
	return f, nil
}

// recover brings the log, the checksums and the files together again. The tree
// is not in use. db.mu is held.
func (db *DB) recover() error {
	if db.store.live {
		return db.recoverLive()
	}
	if _, err := os.Stat(db.DatabasePath()); errors.Is(err, fs.ErrNotExist) {
		return errFileGone
	} else if err != nil {
		return err
	}
	f, err := db.look()
	if err != nil {
		return err
	}
	for _, d := range db.txlog.Dropped() {
		db.log().Warn("a log entry at the end was torn and is dropped", "txid", d.Min, "durable", d.Durable, "error", d.Err)
	}
	if !f.clean || f.hot {
		if err := db.setRecovering(); err != nil {
			return err
		}
	}
	if err := db.openWALNow(); err != nil {
		return err
	}
	if db.store.lastRole == RoleReplica {
		err = db.recoverReplica(f)
	} else {
		err = db.recoverPrimary(f)
	}
	if err != nil || db.stale {
		return err // a stale replica is recovered by the snapshot that it asks for
	}
	return db.recovered()
}

// The mark of a recovery under way. The first change of the checksums stamps
// them with this boot, and with the head they were brought up to; without the
// mark a recovery that is cut off would look to the next one like a run that
// lost nothing. It needs no sync: the next boot finds another boot's stamp.
func (db *DB) recoveringPath() string { return filepath.Join(db.dir, "recovering") }

func (db *DB) recovering() (bool, error) {
	_, err := os.Stat(db.recoveringPath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (db *DB) setRecovering() error {
	f, err := os.OpenFile(db.recoveringPath(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("note that a recovery begins: %w", err)
	}
	return f.Close()
}

func (db *DB) recovered() error {
	if err := os.Remove(db.recoveringPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note that a recovery has ended: %w", err)
	}
	return nil
}

// The state of the files at a clean stop, by size and time of the last change.
// Somebody may open the data directory while the daemon is down; what they
// change in place leaves no other trace.
func (db *DB) statePath() string { return filepath.Join(db.dir, "files") }

func (db *DB) filesState() (string, error) {
	var b strings.Builder
	for _, path := range []string{db.DatabasePath(), db.WALPath()} {
		fi, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			b.WriteString("none\n")
		case err != nil:
			return "", err
		default:
			fmt.Fprintf(&b, "%d %d\n", fi.Size(), fi.ModTime().UnixNano())
		}
	}
	return b.String(), nil
}

// untouched reports whether the files are as a clean stop has left them.
func (db *DB) untouched() (bool, error) {
	was, err := os.ReadFile(db.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	is, err := db.filesState()
	return err == nil && is == string(was), err
}

// noteState records the state of the files. It need not be durable: without it
// the next start looks at every page.
func (db *DB) noteState() error {
	state, err := db.filesState()
	if err != nil {
		return err
	}
	return os.WriteFile(db.statePath(), []byte(state), 0o600)
}

// openWALNow is openWAL that must succeed when there is a write-ahead log: to
// take an unreadable one for none would undo what is committed in it.
func (db *DB) openWALNow() error {
	db.openWAL()
	if db.wal != nil {
		return nil
	}
	f, err := os.Open(db.WALPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(errors.New("it could not be opened before"), f.Close())
	}
	return fmt.Errorf("open the write-ahead log: %w", err)
}

// recoverPrimary recovers a database that this node wrote last.
func (db *DB) recoverPrimary(f found) error {
	state, err := db.locate()
	if err != nil {
		return err
	}
	ok, err := db.proveSums(f)
	if err != nil {
		return err
	}
	if !ok && f.hot && f.logged {
		// Pages of an unfinished transaction may be what stands in the way.
		if err := db.settleJournal(); err != nil {
			return err
		}
		if ok, err = db.rebuildSums(f.head); err != nil {
			return err
		}
	}
	if !ok {
		return db.restartLog(f)
	}
	if db.wal != nil {
		// What applications committed while nobody looked.
		if err := db.captureFrames(); err != nil {
			return err
		}
	}
	if !db.mustVerify(f, state) {
		return nil
	}
	return db.verifyFiles(f, state)
}

// mustVerify decides whether every page is compared. It is not after a clean
// stop, nor when only processes died and the write-ahead log tells all that
// changed since the head.
func (db *DB) mustVerify(f found, state walState) bool {
	switch {
	case f.hot || f.cut || f.lost || state == walBehind || f.wasClean && !f.clean:
		return true
	case f.clean:
		return false
	default:
		return db.at.Frame == 0
	}
}

// verifyFiles compares every page with its checksum and mends the difference.
func (db *DB) verifyFiles(f found, state walState) error {
	pgnos, whole, err := db.compareFiles()
	if err != nil {
		return err
	}
	if f.hot {
		if err := db.endHotJournal(len(pgnos) == 0 && !whole); err != nil {
			return err
		}
		if pgnos, whole, err = db.compareFiles(); err != nil {
			return err
		}
	}
	if len(pgnos) == 0 && !whole {
		return nil
	}
	if !f.hot {
		behind, err := db.filesBehind(f, state, whole || pgnos[0] == 1)
		if err != nil {
			return err
		}
		if behind {
			done, err := db.rollForward(pgnos, whole)
			if err != nil || done {
				return err
			}
		}
	}
	db.log().Warn("files changed while nobody looked: the difference is logged", "pages", len(pgnos))
	return db.logDifference()
}

// filesBehind decides, for files that are not what the log says, which of the
// two is older. When nothing was lost the files cannot be behind: pages are
// written before they are logged, and what differs was written without a
// journal, or by somebody who opened the data directory. After a power cut the
// log has what the files lost, unless the files were last written by a
// transaction that the log lost: in the rollback-journal modes every
// transaction raises the header's change counter. header: the first page is
// among those that differ.
func (db *DB) filesBehind(f found, state walState, header bool) (bool, error) {
	switch {
	case state == walBehind:
		return true, nil
	case !f.lost:
		return false, nil
	case state != walNone || !header:
		return true, nil
	}
	ahead, err := db.headerAhead()
	return !ahead, err
}

// headerAhead reports whether the file's change counter is higher than that of
// the newest first page in the log.
func (db *DB) headerAhead() (bool, error) {
	f, err := os.Open(db.DatabasePath())
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // read only
	have, _, err := readHeader(f)
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	entries := db.txlog.Entries()
	for i := len(entries) - 1; i >= 0; i-- {
		data, ok, err := db.txlog.Page(entries[i], 1)
		if err != nil {
			return false, fmt.Errorf("look for page 1 in the log: %w", err)
		}
		if !ok {
			continue
		}
		logged, err := sqlitefile.ParseHeader(data)
		if err != nil {
			return false, nil // not a database yet: anything is newer, and the pages tell
		}
		return int32(have.ChangeCounter-logged.ChangeCounter) > 0, nil
	}
	return false, nil
}

// logDifference logs what the files hold. A file without a header has nothing
// to log: as while running, it is captured once it is a database again.
func (db *DB) logDifference() error {
	err := db.compareAll(1)
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		db.log().Warn("the file has no database header: it is captured once it has one")
		db.allDirty = true
		return nil
	}
	return err
}

// compareFiles returns the pages that differ from the record, ascending; whole
// means that there is no header, or that the page size is another one.
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
	all, err := db.scanWAL()
	if err != nil {
		return walNone, err
	}
	if all.Commits == 0 {
		return db.locateFirst(), nil
	}
	hdr, err := db.walHeader()
	if err != nil {
		return walNone, err
	}
	state, n := relate(db.txlog.Entries(), hdr, all.To.Frame)
	if state == walNews {
		frame, ok, err := db.joined(hdr)
		if err != nil {
			return state, err
		}
		if state, n = walJoined, frame; !ok {
			state = walNews
		} else if frame > all.To.Frame {
			state = walBehind
		}
	}
	switch state {
	case walJoined:
		if db.at, err = capture.At(db.wal.file, n); err != nil {
			return state, fmt.Errorf("frame %d of the write-ahead log: %w", n, err)
		}
	case walBehind:
		db.at = all.To
	}
	return state, nil
}

// locateFirst is locate for a write-ahead log without a committed frame. The head may be its first transaction, whose last
// frame was held back until others have it (docs/promises.md): the log is ahead.
func (db *DB) locateFirst() walState {
	head, ok := db.txlog.Head()
	if db.wal == nil || !ok || head.WALSize == 0 {
		return walNone
	}
	if hdr, err := db.walHeader(); err == nil && hdr.Salt1 == head.Salt1 && hdr.Salt2 == head.Salt2 {
		return walBehind
	}
	return walNone
}

// locateAll takes every commit of the write-ahead log as captured.
func (db *DB) locateAll() error {
	all, err := db.scanWAL()
	if err == nil && all.Commits > 0 {
		db.at = all.To
	}
	return err
}

// scanWAL reads the write-ahead log by its checksum chain, from the start, and
// forgets how far it was captured.
func (db *DB) scanWAL() (capture.Batch, error) {
	db.at = capture.WALPos{}
	if db.wal == nil {
		return capture.Batch{}, nil
	}
	size, err := db.wal.size()
	if err != nil {
		return capture.Batch{}, err
	}
	all, err := capture.Scan(db.wal.file, size, capture.WALPos{}, capture.Limit{})
	if err != nil {
		return capture.Batch{}, fmt.Errorf("read the write-ahead log: %w", err)
	}
	return all, nil
}

// restartLog begins the log anew from the files, because there is none yet or
// because the checksums of the pages cannot be known.
func (db *DB) restartLog(f found) error {
	if f.logged {
		db.log().Error("page checksums do not match the log and cannot be rebuilt: the log begins anew with a snapshot of the files")
	}
	if err := db.settleJournal(); err != nil {
		return err
	}
	if err := db.locateAll(); err != nil {
		return err
	}
	img, err := db.openImage()
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		// Without sums every page differs, whatever is written next.
		db.allDirty = true
		return db.sums.Resize(0)
	}
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	return db.replaceLog(db.wholeChange(img, 1))
}

// recoverReplica recovers a database whose transactions came from a primary.
// The log decides: files that lag are rolled forward, and files that are ahead,
// because a power cut took the log's tail, are rolled back to it.
func (db *DB) recoverReplica(f found) error {
	if err := db.locateAll(); err != nil {
		return err
	}
	if !f.logged {
		db.stale = true
		return nil
	}
	ok, err := db.proveSums(f)
	if err != nil {
		return err
	}
	if !ok {
		db.stale = true
		db.log().Warn("page checksums do not match the log and cannot be rebuilt: a snapshot is fetched from the primary")
		return nil
	}
	if f.clean || !f.cut && !f.lost && !f.lagging && !f.wasClean {
		return nil
	}
	pgnos, whole, err := db.compareFiles()
	if err != nil || len(pgnos) == 0 && !whole {
		return err
	}
	done, err := db.rollForward(pgnos, whole)
	if err != nil || done {
		return err
	}
	db.stale = true
	db.log().Warn("files and log do not agree and the log does not have every page: a snapshot is fetched from the primary")
	return nil
}

// promote readies a database that was a replica's for local writers. The
// frames in its write-ahead log are copies of log entries that name another
// node's write-ahead log: left in place, the next recovery would take them for
// news. So they go into the file. Files that the log could not be brought to
// are what readers have seen here, and become a new history.
func (db *DB) promote() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.stale {
		if err := db.restartLog(found{logged: db.Pos().TXID > 0}); err != nil {
			return err
		}
		db.stale = false
		db.publish()
	}
	if err := db.openWALNow(); err != nil {
		return err
	}
	if err := db.locateAll(); err != nil {
		return err
	}
	if db.wal != nil && !db.allDirty {
		if err := db.materialise(nil); err != nil {
			return err
		}
	}
	return db.recovered()
}
