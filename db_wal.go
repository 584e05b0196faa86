package litefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/watch"
	"github.com/litefs/litefs/sqlitefile"
)

// Back-off of the capture loop. inotify tells of the write of a commit's last
// frame, before the wal-index publishes it, and publishing (a store to shared
// memory) wakes nobody: look again, at first soon, then less and less often.
const (
	lookAgainMin  = 50 * time.Microsecond
	lookAgainMax  = 250 * time.Millisecond
	lookAgainStop = time.Minute
	// lookBetween is lookAgainMax of a database without a journal: a look must fall between two transactions of who may
	// write without a pause, and where each waits for the disk little time lies between them.
	lookBetween = 5 * time.Millisecond
	// pauseMin and pauseMax bound the time between two captures of one
	// database. Each capture costs the writer a little on a small machine, and
	// each log entry a file to be synced, so under load commits gather and
	// share one. The pause grows while more than gathered commits come at once.
	pauseMin = time.Millisecond
	pauseMax = 4 * time.Millisecond
	gathered = 8
)

// walFile is the write-ahead log of a database, open for captures.
type walFile struct {
	file  *os.File
	watch *watch.Watch
	shm   *os.File // wal-index as applications see it; nil until it is needed

	// into is where commit frames are written that were kept from the file; nil until one is.
	into *os.File

	unwatched bool // the watch could not be armed
}

func (w *walFile) size() (int64, error) {
	fi, err := w.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("size of the write-ahead log: %w", err)
	}
	return fi.Size(), nil
}

// openWAL starts to follow the database's write-ahead log if there is one.
// db.mu is held. An error leaves the database without one until the next look.
func (db *DB) openWAL() {
	if db.wal != nil {
		return
	}
	f, err := os.Open(db.WALPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		db.log().Error("cannot open the write-ahead log", "error", err)
		return
	}
	w, err := db.store.watcher.Add(db.WALPath(), db.poke)
	if errors.Is(err, fs.ErrNotExist) {
		if err := f.Close(); err != nil { // removed meanwhile
			db.log().Warn("close the write-ahead log", "error", err)
		}
		return
	}
	if err != nil {
		db.log().Error("cannot watch the write-ahead log: captures wait for checkpoints", "error", err)
	}
	db.wal = &walFile{file: f, watch: w}
}

// closeWAL forgets the write-ahead log, because it was removed or replaced.
// db.mu is held.
func (db *DB) closeWAL() {
	w := db.wal
	if w == nil {
		return
	}
	db.wal = nil
	var errs []error
	if w.watch != nil {
		errs = append(errs, w.watch.Close())
	}
	if w.shm != nil {
		errs = append(errs, db.closeIndex(w))
	}
	if w.into != nil {
		errs = append(errs, w.into.Close())
	}
	if err := errors.Join(append(errs, w.file.Close())...); err != nil {
		db.log().Warn("close the write-ahead log", "error", err)
	}
}

// poke wakes the capture loop. It never blocks.
func (db *DB) poke() {
	select {
	case db.wake <- struct{}{}:
	default:
	}
}

// captureLoop captures transactions in the background until the database is
// closed.
func (db *DB) captureLoop() {
	defer close(db.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-db.wake:
		}
		if time.Since(db.captured) < pauseMin && !db.sleep(timer, pauseMin) {
			return
		}
		if !db.captureUntilQuiet(timer) {
			return
		}
	}
}

// captureUntilQuiet captures until nothing is left to be seen and the next write
// will wake it. One look comes after the watch was armed: for what was written
// before. It reports false when the database is being closed.
func (db *DB) captureUntilQuiet(timer *time.Timer) bool {
	pause := pauseMin
	first := true  // nothing was captured yet: somebody may be waiting for this commit
	armed := false // the next write wakes the loop
	for delay, waited := lookAgainMin, time.Duration(0); ; {
		before := db.TXID()
		switch db.captureOnce() {
		case lookNone:
			if armed {
				return true
			}
			if armed = db.armWatch(); armed {
				continue
			}
			delay = lookAgainMax
		case lookCaptured:
			db.captured = time.Now()
			commits := db.TXID() - before
			if commits <= 1 && !armed {
				// They come one at a time: it costs less to be woken by the next one
				// than to look for it.
				if armed = db.armWatch(); armed {
					first = false
					continue
				}
			}
			armed = false
			if pause = min(pause*2, pauseMax); commits < gathered {
				pause = pauseMin
			}
			delay, waited, first = pause, 0, false
		case lookUnpublished:
			delay = lookAgain(delay, db.unjournaled.Load())
			if waited > lookAgainStop {
				if armed {
					return true
				}
				if armed = db.armWatch(); armed {
					continue
				}
			}
			waited += delay
		}
		if first && delay < time.Millisecond {
			nap(delay)
			continue
		}
		if !db.sleep(timer, delay) {
			return false
		}
	}
}

// lookAgain returns how long after one look that came too early, and delay before it, the next one comes.
func lookAgain(delay time.Duration, unjournaled bool) time.Duration {
	most := lookAgainMax
	if unjournaled {
		most = lookBetween
	}
	return min(max(delay*2, lookAgainMin), most)
}

// sleep waits for d. It reports false when the database is being closed.
func (db *DB) sleep(timer *time.Timer, d time.Duration) bool {
	timer.Reset(d)
	select {
	case <-db.stop:
		return false
	case <-timer.C:
		return true
	}
}

// armWatch makes the next write to the write-ahead log wake the loop, if there is
// one to be captured. It reports false when that failed: then the loop must not
// wait to be woken.
func (db *DB) armWatch() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	w := db.wal
	if w == nil || w.watch == nil || db.peer != nil || db.store.Role() == RoleReplica {
		return true
	}
	err := w.watch.Arm()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		w.unwatched = false
		return true // a file that was removed has told us so
	}
	if !w.unwatched {
		w.unwatched = true
		db.log().Error("cannot watch the write-ahead log: it is looked at all the time", "error", err)
	}
	return false
}

// nap waits for less than a millisecond. Timers of the runtime take one at
// least when nothing else is going on: its poller counts in milliseconds.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil) // cut short by a signal is as good
}

// look is what a capture found.
type look int

const (
	lookNone        look = iota // nothing to do
	lookCaptured                // at least one transaction
	lookUnpublished             // frames that no commit has published yet
)

// captureOnce takes one look at the write-ahead log. A failure is logged and
// counted: the frames stay in the write-ahead log, which cannot restart before
// they are captured, and the next wake-up tries again.
func (db *DB) captureOnce() look {
	db.prepareIndex()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.borrowed.Load() != nil && db.passed != nil {
		return db.lookLetIn()
	}
	if db.closed || db.peer != nil || db.store.Role() == RoleReplica {
		return lookNone
	}
	db.openWAL()
	if db.indexUnread() {
		return lookUnpublished // opened before the next look
	}
	undecided := db.undecided
	if settled, err := db.settleUndecided(); err != nil || !settled {
		if err != nil && !db.behind.Swap(true) {
			db.log().Error("a transaction that was refused is not taken back in the log yet; tried again", "error", err)
		}
		return lookUnpublished
	}
	if undecided != db.undecided {
		return lookCaptured // at the gate; what came after it is for the next look
	}
	before := db.at
	err := db.captureSettled()
	if errors.Is(err, errDoubt) {
		return lookUnpublished
	}
	if err != nil {
		db.store.stats.CaptureErrors.Add(1)
		if !db.behind.Swap(true) { // once: it is tried again at every commit
			db.log().Error("capture failed; the transactions stay in the write-ahead log and are tried again", "error", err)
		}
		return lookUnpublished
	}
	if db.behind.Swap(false) {
		db.log().Info("captures succeed again")
	}
	if db.at != before {
		return lookCaptured
	}
	if db.unpublished() {
		return lookUnpublished
	}
	found, err := db.captureUnjournaled()
	if err != nil {
		db.store.stats.CaptureErrors.Add(1)
		db.log().Error("capture failed; tried again with the next write", "error", err)
	}
	return found
}

// lookLetIn is captureOnce on a replica that writes under the primary's lock. db.mu is held.
func (db *DB) lookLetIn() look {
	if err := db.settleLetIn(); err != nil {
		db.log().Error("a forwarded transaction is not recorded yet; tried again", "error", err)
	}
	if db.passed != nil {
		return lookUnpublished
	}
	return lookCaptured
}

// unpublished reports whether the write-ahead log has frames of its current
// generation beyond the captured ones. db.mu is held.
func (db *DB) unpublished() bool {
	if db.wal == nil || db.closing.Load() {
		return false
	}
	size, err := db.wal.size()
	if err != nil || size < sqlitefile.WALHeaderSize {
		return false
	}
	hdr, err := db.walHeader()
	if err != nil {
		return false
	}
	next := uint32(1)
	if hdr.Salt1 == db.at.Salt1 && hdr.Salt2 == db.at.Salt2 {
		next = db.at.Frame + 1
	}
	if next > sqlitefile.FrameCount(size, hdr.PageSize) {
		return false
	}
	b := make([]byte, sqlitefile.FrameHeaderSize)
	if _, err := db.wal.file.ReadAt(b, sqlitefile.FrameOffset(next, hdr.PageSize)); err != nil {
		return false
	}
	f := sqlitefile.ParseFrame(b)
	return f.Salt1 == hdr.Salt1 && f.Salt2 == hdr.Salt2
}

func (db *DB) walHeader() (sqlitefile.WALHeader, error) {
	b := make([]byte, sqlitefile.WALHeaderSize)
	n, err := db.wal.file.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return sqlitefile.WALHeader{}, fmt.Errorf("read the header of the write-ahead log: %w", err)
	}
	return sqlitefile.ParseWALHeader(b[:n])
}

// captureWAL brings the log up to the last transaction that the write-ahead
// log has published. With durable set, everything is on disk when it returns.
// db.mu is held.
func (db *DB) captureWAL(durable bool) error {
	if db.wal == nil {
		db.openWAL()
	}
	if db.wal != nil {
		if err := db.captureFrames(); err != nil {
			return err
		}
	}
	if durable {
		if err := db.txlog.Sync(); err != nil {
			return fmt.Errorf("make the log durable: %w", err)
		}
	}
	return nil
}

// captureFrames captures what the wal-index has published, or, while no
// application shares a wal-index (locking_mode=EXCLUSIVE keeps it on the
// heap), what the checksum chain proves. db.mu is held.
func (db *DB) captureFrames() error {
	if db.closing.Load() || db.onLoan.Load() {
		return nil
	}
	if settled, err := db.settleUndecided(); err != nil || !settled {
		return err // nothing is published behind it
	}
	return db.takeBatch(db.scanNew())
}

// errDoubt says that the wal-index publishes less than was captured, or the
// captured frames are others, since a moment only.
var errDoubt = errors.New("the write-ahead log is looked at again")

// doubtPatience is how long that may last. Somebody who opens a wal-index that a
// dead connection has left empties it, and recovers; until the kernel has cut
// its pages off, a reader in this process may see the old ones.
const doubtPatience = 500 * time.Millisecond

// captureSettled is captureFrames where there is time to look again before every
// page is compared. db.mu is held.
func (db *DB) captureSettled() error {
	if db.wal == nil || db.closing.Load() {
		return nil
	}
	batch, err := db.scanNew()
	if !errors.Is(err, capture.ErrBroken) {
		db.doubt = time.Time{}
		return db.takeBatch(batch, err)
	}
	if db.doubt.IsZero() {
		db.doubt = time.Now()
	}
	if time.Since(db.doubt) < doubtPatience {
		return errDoubt
	}
	return db.takeBatch(batch, err)
}

// takeBatch logs what scanNew has found, or what it failed to. db.mu is held.
func (db *DB) takeBatch(batch capture.Batch, err error) error {
	switch {
	case errors.Is(err, capture.ErrRestarted):
		return nil
	case errors.Is(err, capture.ErrBroken):
		return db.captureGap(err)
	case err != nil:
		return fmt.Errorf("read the write-ahead log: %w", err)
	case batch.Commits == 0:
		return nil
	}
	return db.logBatch(batch)
}

// scanNew looks for what was committed since the last capture. db.mu is held.
func (db *DB) scanNew() (capture.Batch, error) {
	batch, err := db.scanOnce()
	if errors.Is(err, capture.ErrBroken) {
		// A restart between two reads looks like that. It cannot come twice, for
		// the checkpoint before the next one waits for db.mu in its barrier.
		return db.scanOnce()
	}
	return batch, err
}

func (db *DB) scanOnce() (capture.Batch, error) {
	limit, err := db.publishedLimit()
	if err != nil {
		return capture.Batch{}, err
	}
	if limit.EndsAt(db.at) {
		return capture.Batch{From: db.at, To: db.at}, nil
	}
	size, err := db.wal.size()
	if err != nil || size < sqlitefile.WALHeaderSize {
		return capture.Batch{}, err
	}
	batch, err := capture.Scan(db.wal.file, size, db.at, limit)
	if !errors.Is(err, capture.ErrRestarted) {
		return batch, err
	}
	// The barrier has captured all of the old generation. Either the new one has
	// commits, or only the wal-index has been restarted yet.
	if limit, err = db.publishedLimit(); err != nil {
		return capture.Batch{}, err
	}
	return capture.Scan(db.wal.file, size, capture.WALPos{}, limit)
}

// logBatch logs what a scan of the write-ahead log found, and with it what was
// written unseen before this write-ahead log began. db.mu is held.
func (db *DB) logBatch(batch capture.Batch) error {
	if db.leftWAL || db.allDirty {
		changed, err := db.firstPageChanged()
		if err != nil {
			return err
		}
		if changed || db.allDirty {
			old := db.at
			db.at = batch.To
			if err := db.compareAll(batch.Commits); err != nil {
				db.at = old
				return err
			}
			db.leftWAL = false
			return nil
		}
		db.leftWAL = false
	}
	if err := db.appendBatch(batch); err != nil {
		return err
	}
	db.at = batch.To
	return nil
}

// barrier captures and makes durable everything the write-ahead log holds. It
// is called before a checkpoint may finish, so that the write-ahead log cannot
// restart over frames that are not in the log yet. An error here makes the
// checkpoint fail, which an application does not notice: its write-ahead log
// grows until the log can be written again.
//
// A database file that gets smaller than its transactions left it, with no
// write-ahead log in use, is being overwritten: what it holds afterwards is
// found by comparing pages.
func (db *DB) barrier(size int64) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer != nil {
		return nil
	}
	db.store.stats.Barriers.Add(1)
	db.closing.Store(false) // nobody checkpoints what it is about to remove
	if err := db.captureWAL(true); err != nil {
		return err
	}
	db.settled = db.at
	if u := db.undecided; u != nil && u.letIn {
		db.settled = u.beforeAt // nothing is checkpointed that is not published
	}
	if db.at.Frame == 0 && size < int64(db.sums.Count())*int64(db.sums.PageSize()) {
		db.allDirty = true
	}
	return nil
}

// walRemoved forgets a write-ahead log that is gone. SQLite removes one when all
// of it is in the database, for which it came through the barrier. Frames after
// those are of a commit that never was published. One that went in any other way
// has taken transactions with it.
func (db *DB) walRemoved() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.closing.Store(false)
	u := db.undecided
	if u != nil && u.letIn {
		db.at = u.beforeAt // it was never published
	}
	if db.at != db.settled {
		db.allDirty = true
	}
	db.closeWAL()
	db.at = capture.WALPos{}
	if u != nil && u.letIn {
		u.beforeAt = capture.WALPos{}
		if err := db.takeBack(); err != nil {
			db.log().Error("a transaction that died with its write-ahead log is not taken back in the log yet; tried again", "error", err)
		}
	}
	db.leftWAL = db.store.writesUnseen(db.Name())
}

// walInUse reports whether the write-ahead log holds captured frames that a
// reader may still need: one that was truncated does not. db.mu is held.
func (db *DB) walInUse() bool {
	if db.wal == nil || db.at.Frame == 0 {
		return false
	}
	size, err := db.wal.size()
	return err != nil || size > sqlitefile.WALHeaderSize
}

// limitAt is the part of the write-ahead log that has been captured.
func (db *DB) limitAt() (capture.Limit, error) {
	hdr, err := db.walHeader()
	if err != nil && !errors.Is(err, sqlitefile.ErrNoWAL) {
		return capture.Limit{}, err
	}
	return capture.Published(sqlitefile.IndexHeader{
		PageSize: hdr.PageSize, MaxFrame: db.at.Frame, FrameCksum: db.at.Cksum, Salt1: db.at.Salt1, Salt2: db.at.Salt2,
	}), nil
}
