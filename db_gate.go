package litefs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/walwrite"
	"github.com/litefs/litefs/sqlitefile"
)

// This file holds commits in a write-ahead log back until replicas, or archives, have them: docs/promises.md.

// ErrTaken is returned by Store.Writing when the bytes were taken: they are not to be written, and the writer is told
// that they were.
var ErrTaken = errors.New("the write was taken")

// walWrites is what was seen of the writes to a write-ahead log. Only the holder of SQLite's WRITE lock writes frames, so
// nobody waits for mu but for one who has died. It comes before DB.mu.
type walWrites struct {
	mu  sync.Mutex
	log *walwrite.Log // nil: nothing yet
}

// undecided is a transaction that is the newest of the log, and not decided. DB.mu guards it.
type undecided struct {
	pos    Pos    // after it; zero until it is in the log
	before Pos    // the last decided position
	epoch  uint64 // of before

	// Of a write-ahead log.
	letIn    bool           // its last frame is in the file, and SQLite goes on
	beforeAt capture.WALPos // where the write-ahead log was captured to before it
	count    uint32         // pages of the database before it
	frame    [sqlitefile.FrameHeaderSize]byte
	at       capture.WALPos // after it

	// refused: the application was told that it failed, or is about to be, and what takes it back is not in the log yet.
	refused bool
	journal bool // a rollback journal's: SQLite brings the pages back itself
}

// writeWAL takes a write to a write-ahead log that is open for direct I/O.
func (db *DB) writeWAL(off int64, data []byte) error {
	w := &db.wrote
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.log == nil {
		w.log = walwrite.New(db.walPageSize())
	}
	v, err := w.log.Write(off, data)
	if err != nil {
		db.log().Error("a write to the write-ahead log is refused", "error", err)
		return syscall.EIO
	}
	switch v.Action {
	case walwrite.Keep:
		return ErrTaken
	case walwrite.Flush:
		if err := db.writeFrame(v); err != nil {
			return err
		}
		return ErrTaken
	case walwrite.Restart:
		return db.walRestarts()
	case walwrite.Commit:
		if err := db.gate(v); err != nil {
			return err
		}
		w.log.Mark()
		return ErrTaken
	}
	if v.Again {
		db.commitRewritten(v)
	}
	return nil
}

// forgetWrites begins anew: a peer has written to the write-ahead log, and nobody is in the middle of a transaction.
func (db *DB) forgetWrites() {
	db.wrote.mu.Lock()
	defer db.wrote.mu.Unlock()
	db.wrote.log = nil
}

// walPageSize is what the header in the file says; 0 without one.
func (db *DB) walPageSize() uint32 {
	f, err := openRead(db.WALPath())
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // read only
	h, err := sqlitefile.ReadWALHeader(f)
	if err != nil {
		return 0
	}
	return h.PageSize
}

// writeFrame writes the bytes of a verdict where they belong.
func (db *DB) writeFrame(v walwrite.Verdict) error {
	f, err := os.OpenFile(db.WALPath(), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write a frame: %w", err)
	}
	_, err = f.WriteAt(v.Bytes, v.Offset)
	return errors.Join(err, f.Close())
}

// letIn writes a commit frame where it belongs. db.mu is held, and the write-ahead log is open.
func (db *DB) letIn(v walwrite.Verdict) (err error) {
	if db.wal.into == nil {
		if db.wal.into, err = os.OpenFile(db.WALPath(), os.O_WRONLY, 0); err != nil {
			return fmt.Errorf("write a commit frame: %w", err)
		}
	}
	_, err = db.wal.into.WriteAt(v.Bytes, v.Offset)
	return err
}

// walRestarts is called before the header of a write-ahead log is written. All that was published is captured then, so a
// transaction that is in doubt was not.
func (db *DB) walRestarts() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if b := db.borrowed.Load(); b != nil && db.passed != nil {
		b.lose(errors.New("the write-ahead log begins anew before a transaction is published, whose writer died"))
		return syscall.EIO
	}
	if u := db.undecided; u == nil || !u.letIn {
		return nil
	}
	if err := db.takeBack(); err != nil {
		db.log().Error("the write-ahead log may not begin anew: a transaction that died is not taken back in the log yet", "error", err)
		return syscall.EIO
	}
	return nil
}

// commitRewritten notes that SQLite has written the header of the last commit frame anew.
func (db *DB) commitRewritten(v walwrite.Verdict) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.at.Frame != v.Frame {
		return
	}
	cksum := sqlitefile.ParseFrame(v.Bytes).Cksum
	db.at.Cksum = cksum
	if u := db.undecided; u != nil && u.letIn && u.at.Frame == v.Frame {
		u.at.Cksum = cksum
		copy(u.frame[:], v.Bytes)
	}
}

// overlay is a file with one frame that is not in it yet.
type overlay struct {
	file  io.ReaderAt
	off   int64
	frame []byte
}

func (o overlay) ReadAt(p []byte, off int64) (int, error) {
	if end := o.off + int64(len(o.frame)); off < end && off+int64(len(p)) > o.off {
		n := 0
		if off < o.off {
			var err error
			if n, err = o.file.ReadAt(p[:o.off-off], off); err != nil {
				return n, err
			}
		}
		m := copy(p[n:], o.frame[max(0, off-o.off):])
		if n += m; n == len(p) {
			return n, nil
		}
		return n, io.EOF // nothing of the file behind it counts
	}
	return o.file.ReadAt(p, off)
}

// gate lets the commit frame into the write-ahead log when the transaction is where its level wants it. An error refuses
// the commit: the frame was never in the file, and the log has what takes the transaction back.
func (db *DB) gate(v walwrite.Verdict) error {
	db.store.relieve()
	level := db.Level()
	until := time.Now().Add(level.Timeout)
	var err error
	if db.store.Role() == RoleReplica {
		err = db.forward(v)
	} else if err = db.archivedSoFar(level, until); err == nil {
		db.mu.Lock()
		err = db.gateLocked(v, level, until)
		db.mu.Unlock()
	}
	if err == nil {
		return nil
	}
	db.store.stats.CaptureErrors.Add(1)
	db.log().Error("a commit is refused", "level", level.String(), "error", err)
	if errors.Is(err, syscall.ENOSPC) {
		return syscall.ENOSPC
	}
	return syscall.EIO
}

func (db *DB) gateLocked(v walwrite.Verdict, level Level, until time.Time) error {
	s := db.store
	if db.closed || db.peer != nil || s.Role() != RolePrimary {
		return errors.New("this node is not the primary")
	}
	if db.openWAL(); db.wal == nil {
		return errors.New("the write-ahead log cannot be read")
	}
	if err := db.settleOverwritten(v.Lowest); err != nil {
		return err
	}
	if !level.Gated() {
		return db.letIn(v) // captured when it is published
	}
	if err := db.captureBefore(); err != nil {
		return fmt.Errorf("capture what was committed before: %w", err)
	}
	wal := overlay{db.wal.file, v.Offset, v.Bytes}
	batch, err := db.scanFrame(wal, v)
	if err != nil {
		return err
	}
	c, done, err := db.changeOf(batch, wal)
	if err != nil {
		return err
	}
	defer done() //nolint:errcheck // read only
	if u := db.undecided; u != nil && u.letIn {
		same, err := db.changesNothing(&c)
		if err != nil {
			return err
		}
		if same { // SQLite pads its commit to the end of a sector
			db.at, u.at = batch.To, batch.To
			copy(u.frame[:], v.Bytes)
			return db.letIn(v)
		}
		db.decide() // who goes on behind it has published it
	}
	return db.commitGated(v, c, batch, level, until)
}

// captureBefore captures what was committed before the frames of the transaction at the gate. db.mu is held.
func (db *DB) captureBefore() error {
	if u := db.undecided; u != nil && u.letIn {
		return nil // nothing is published behind it
	} else if u != nil {
		// A refused transaction of a rollback journal: whatever was rolled back is compared.
		if err := db.compareAll(1); err != nil {
			return err
		}
		db.decide()
	}
	if err := db.takeBatch(db.scanNew()); err != nil {
		return err
	}
	if !db.leftWAL && !db.allDirty {
		return nil
	}
	changed, err := db.firstPageChanged()
	if err == nil && (changed || db.allDirty) {
		err = db.compareAll(1)
	}
	if err == nil {
		db.leftWAL = false
	}
	return err
}

// scanFrame returns the transaction that ends with the frame at the gate.
func (db *DB) scanFrame(wal io.ReaderAt, v walwrite.Verdict) (capture.Batch, error) {
	batch, err := capture.ScanUnpublished(wal, db.at, v.Frame)
	if err == nil && batch.PageSize != db.sums.PageSize() {
		err = fmt.Errorf("pages of %d bytes, the log has pages of %d", batch.PageSize, db.sums.PageSize())
	}
	if err != nil {
		return capture.Batch{}, fmt.Errorf("frames of the transaction: %w", err)
	}
	return batch, nil
}

// changesNothing reports whether the pages of c are those on record. Their checksums are kept in c.
func (db *DB) changesNothing(c *change) (bool, error) {
	sums, err := db.hashPages(*c)
	if err != nil {
		return false, err
	}
	c.sums = sums
	for i, pgno := range c.pgnos {
		if sums[i] != db.sums.Get(pgno) {
			return false, nil
		}
	}
	return c.count == db.sums.Count(), nil
}

// commitGated makes the transaction at the gate an entry, waits for those who must have it, and lets its last frame in.
func (db *DB) commitGated(v walwrite.Verdict, c change, batch capture.Batch, level Level, until time.Time) error {
	u, err := db.promise(c, batch.To, level, until)
	if u == nil {
		return err
	}
	if err == nil {
		err = db.letIn(v)
	}
	if err != nil {
		return errors.Join(err, db.takeBack())
	}
	u.refused, u.letIn, u.at = false, true, batch.To
	copy(u.frame[:], v.Bytes)
	return nil
}

// promise makes a transaction that ends at to an entry that is not decided, and waits for those who must have it. On an
// error it is to be taken back; nil: it is not in the log.
func (db *DB) promise(c change, to capture.WALPos, level Level, until time.Time) (*undecided, error) {
	s := db.store
	head, _ := db.txlog.Head()
	u := &undecided{before: Pos{TXID: head.Max, Chksum: head.Post}, epoch: head.Epoch, beforeAt: db.at, count: db.sums.Count()}
	db.undecided = u
	c.ahead = func() { s.MarkDirty(db.id) }
	err := db.appendChange(c)
	now, _ := db.txlog.Head()
	if now.Max == head.Max {
		db.undecided = nil
		return nil, err
	}
	u.pos, u.refused = Pos{TXID: now.Max, Chksum: now.Post}, true
	db.at = to
	if late := new(notDurable); level.Memory && errors.As(err, late) {
		err = nil
	}
	if err == nil {
		err = s.awaitPromise(db, u.pos, level, until)
	}
	if err == nil && s.Role() != RolePrimary {
		err = errors.New("this node is not the primary any more")
	}
	return u, err
}

// decide makes the undecided transaction one that everybody may see. db.mu is held.
func (db *DB) decide() {
	db.undecided = nil
	db.publish()
	db.store.MarkDirty(db.id)
}

// settleUndecided finds out what became of the undecided transaction. It reports false while nobody can know. An error:
// it is void, and the log does not say so yet. db.mu is held.
func (db *DB) settleUndecided() (bool, error) {
	u := db.undecided
	switch {
	case u == nil || u.journal:
		return true, nil
	case u.refused:
		err := db.takeBack()
		return err == nil, err
	case !u.letIn:
		return false, nil
	}
	limit, err := db.publishedLimit()
	if err != nil {
		return false, err
	}
	if limit.Known() && !limit.Covers(u.at) {
		return false, nil
	}
	if !limit.Known() { // nobody shares a wal-index: the chain of frames is what SQLite's recovery goes by
		if whole, err := db.chainHolds(u); err != nil || !whole {
			return false, err
		}
	}
	db.decide()
	return true, nil
}

// chainHolds reports whether the checksum chain of the write-ahead log leads to the end of u.
func (db *DB) chainHolds(u *undecided) (bool, error) {
	if db.wal == nil {
		return false, nil
	}
	size, err := db.wal.size()
	if err != nil {
		return false, err
	}
	from := capture.WALPos{}
	if u.beforeAt.Salt1 == u.at.Salt1 && u.beforeAt.Salt2 == u.at.Salt2 {
		from = u.beforeAt
	}
	batch, err := capture.Scan(db.wal.file, size, from, capture.Limit{})
	if errors.Is(err, capture.ErrBroken) || errors.Is(err, capture.ErrRestarted) {
		return false, nil
	}
	return err == nil && batch.To.Frame >= u.at.Frame && batch.To.Salt1 == u.at.Salt1 && batch.To.Salt2 == u.at.Salt2, err
}

// settleOverwritten settles the undecided transaction when the next one is about to commit: lowest is the lowest frame
// whose page was written since. db.mu is held.
func (db *DB) settleOverwritten(lowest uint32) error {
	u := db.undecided
	if u == nil || u.journal {
		return nil
	}
	if u.letIn && lowest > u.at.Frame {
		_, err := db.settleUndecided()
		return err
	}
	return db.takeBack()
}

// settleForGood settles the undecided transaction when no local writer is left. db.mu is held.
func (db *DB) settleForGood() error {
	u := db.undecided
	if u == nil {
		return nil
	}
	if u.journal {
		db.decide() // the pages have been compared, or will be
		return nil
	}
	settled, err := db.settleUndecided()
	if err == nil && !settled {
		err = db.takeBack()
	}
	return err
}

// takeBack logs, durably, what brings every page back to what it was before the undecided transaction. On an error the
// transaction stays undecided, and nothing else is captured. db.mu is held.
func (db *DB) takeBack() (err error) {
	u := db.undecided
	defer func() {
		if err != nil {
			u.refused, u.letIn = true, false
			db.undecided = u
			err = fmt.Errorf("take transaction %016x back: %w", u.pos.TXID, err)
		}
	}()
	if u.letIn {
		if err := db.wipe(u); err != nil {
			return err
		}
		u.letIn = false
	}
	head, ok := db.txlog.Head()
	if !ok || head.Max != u.pos.TXID || head.Post != u.pos.Chksum {
		return fmt.Errorf("the log has gone on to %016x", head.Max)
	}
	pgnos, err := db.pagesToRestore(head.Commit, u.count)
	if err != nil {
		return err
	}
	db.at = u.beforeAt
	img, err := db.openAppliedImage()
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	db.undecided = nil
	err = db.appendChange(change{
		commits: 1, pageSize: img.pageSize, count: u.count, pgnos: pgnos, read: img.readPage, durable: true, wal: db.at, walFrom: db.at,
		at: head.Timestamp,
	})
	if err != nil {
		return err
	}
	if now, _ := db.txlog.Head(); now.Post != u.before.Chksum {
		db.log().Error("a transaction was taken back to other pages than those before it: comparing all of them", "got", now.Post, "want", u.before.Chksum)
		db.allDirty = true
	}
	db.log().Info("a transaction was taken back", "txid", u.pos.TXID)
	return nil
}

// pagesToRestore names the pages that the newest entry has changed or cut off, of a database of count pages before it.
func (db *DB) pagesToRestore(after, count uint32) ([]uint32, error) {
	head, _ := db.txlog.Head()
	lock := sqlitefile.LockPgno(head.PageSize)
	var pgnos []uint32
	err := db.txlog.Stream(head, func(pgno uint32, _ []byte) error {
		if pgno <= count {
			pgnos = append(pgnos, pgno)
		}
		return nil
	})
	for pgno := after + 1; pgno <= count && err == nil; pgno++ {
		if pgno != lock {
			pgnos = append(pgnos, pgno)
		}
	}
	slices.Sort(pgnos)
	return slices.Compact(pgnos), err
}

// wipe clears the header of a commit frame that was let in and died, if it is still there.
func (db *DB) wipe(u *undecided) error {
	f, err := os.OpenFile(db.WALPath(), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	off := sqlitefile.FrameOffset(u.at.Frame, db.sums.PageSize())
	var b [sqlitefile.FrameHeaderSize]byte
	_, err = f.ReadAt(b[:], off)
	switch {
	case err == nil && b == u.frame:
		_, err = f.WriteAt(make([]byte, len(b)), off)
		if err == nil {
			err = syncData(f)
		}
	case errors.Is(err, io.EOF):
		err = nil
	}
	return errors.Join(err, f.Close())
}
