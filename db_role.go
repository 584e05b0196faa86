package litefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/internal/vfs"
	"github.com/litefs/litefs/sqlitefile"
)

// This file changes the role of a database that applications have open:
// docs/failover.md.

// takePeer takes the replica's locks on the database, so that nobody here
// writes to it, and makes it ready to apply. It waits for local writers to end,
// and captures what they have committed.
//
// The mount is touched without db.mu: a writer that is waited for may be in a
// request that takes it.
func (db *DB) takePeer(ctx context.Context) error {
	if err := db.peering.acquire(ctx); err != nil {
		return err
	}
	defer db.peering.release()
	db.mu.Lock()
	if db.closed || db.peer != nil {
		defer db.mu.Unlock()
		if db.closed {
			return nil
		}
		return db.applyAgain(ctx)
	}
	db.mu.Unlock()

	db.brake.release(db)
	p, err := db.openPeer(ctx)
	if err != nil {
		return err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return p.Close(ctx)
	}
	if err := db.captureLast(); err != nil {
		return errors.Join(fmt.Errorf("capture what was written last: %w", err), p.Close(ctx))
	}
	db.closeWAL()
	db.peer = p
	return db.applyAgain(ctx)
}

func (db *DB) openPeer(ctx context.Context) (*peer.Peer, error) {
	opt := db.peerOptions()
	if err := os.MkdirAll(filepath.Dir(opt.Path), 0o755); err != nil {
		return nil, fmt.Errorf("directory of %s: %w", db.Name(), err)
	}
	return peer.Open(ctx, opt)
}

func (db *DB) peerOptions() peer.Options {
	return peer.Options{
		Buffers: &db.store.peerBuffers,
		Path:    filepath.Join(db.store.MountDir(), db.Name()), Backing: db.DatabasePath(), Logger: db.log(), Locks: db.lockKeeper(),
		LocksBehind: db.store.LocksBehind,
		Eager:       db.store.Role() == RolePrimary, // it is lent, and a replica waits
		SoftWAL:     replicaSoftWAL, HardWAL: replicaHardWAL, Waiting: &db.waiting,
	}
}

// captureLast captures what local writers have committed, now that none is
// left. It belongs to the reign that ends: see Store.reign. db.mu is held.
func (db *DB) captureLast() error {
	if !db.local.Load() {
		return nil
	}
	db.closing.Store(false)
	// Not durably: applications wait. Whoever follows syncs the log before: see
	// Store.beginToFollow.
	if err := db.captureWAL(false); err != nil {
		return err
	}
	if err := db.settleForGood(); err != nil {
		return err
	}
	unseen, err := db.writtenUnseen()
	if err != nil {
		return err
	}
	if unseen || len(db.dirty) > 0 || db.allDirty || db.leftWAL {
		err := db.captureFile()
		if errors.Is(err, sqlitefile.ErrNotDatabase) {
			err = nil // emptied, or not written yet: the next transaction replaces it
		}
		if err == nil {
			err = db.txlog.Sync()
		}
		if err != nil {
			return err
		}
	}
	db.local.Store(false)
	return nil
}

// makeDurable syncs the log, for who changes sides.
func (db *DB) makeDurable() error {
	err := db.txlog.Sync()
	if errors.Is(err, ltxlog.ErrClosed) {
		return nil // its end has made it durable
	}
	if err != nil {
		return fmt.Errorf("make the log durable: %w", err)
	}
	return nil
}

// writtenUnseen reports whether a database in a rollback-journal mode was
// written without a request for each page. db.mu is held.
func (db *DB) writtenUnseen() (bool, error) {
	if !db.store.writesUnseen(db.Name()) {
		return false, nil
	}
	f, err := os.Open(db.DatabasePath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // read only
	hdr, _, err := readHeader(f)
	return err == nil && !hdr.IsWAL() && !db.walInUse(), nil
}

// endLate decides whether a rollback journal may end after the node has ceased
// to be the primary: after a rollback, not after a commit, which is refused so
// that SQLite rolls it back.
func (db *DB) endLate() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer != nil {
		return nil
	}
	img, err := db.openImage()
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // read only
	if img.pageSize != db.sums.PageSize() || img.count != db.sums.Count() {
		return syscall.EROFS
	}
	if db.allDirty || db.store.writesUnseen(db.Name()) {
		pgnos, err := db.differing(img)
		if err == nil && len(pgnos) > 0 {
			err = syscall.EROFS
		}
		return err
	}
	c := change{pageSize: img.pageSize, count: img.count, read: img.readPage}
	for pgno := range db.dirty {
		if pgno <= img.count && pgno != sqlitefile.LockPgno(img.pageSize) {
			c.pgnos = append(c.pgnos, pgno)
		}
	}
	if err := db.keepChanged(&c); err != nil {
		return err
	}
	if len(c.pgnos) > 0 {
		return syscall.EROFS
	}
	return nil
}

// readyToWrite brings the files to the log's head and notes how far the log has
// the write-ahead log that the peer has made. The locks stay taken. Files that
// the log cannot be brought to are what readers have seen here, and become a
// new history.
func (db *DB) readyToWrite(ctx context.Context) error {
	db.hold.Store(AllDecided) // what is in the log of the next primary is history
	if err := db.endBorrow(ctx, errors.New("this node becomes the primary")); err != nil {
		return err
	}
	if err := db.noteNotLent(); err != nil { // in another epoch than this
		return err
	}
	db.setLent(false)
	if _, err := db.catchUp(ctx); err != nil {
		return err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer == nil {
		return nil
	}
	if db.load != nil { // half a copy is none
		if err := db.failLoad(nil); err != nil {
			return err
		}
	}
	if db.stale && db.peer.PageCount() > 0 {
		img, err := db.openAppliedImage()
		if err != nil {
			return err
		}
		img.pageSize, img.count = db.peer.PageSize(), db.peer.PageCount()
		if err := errors.Join(db.replaceLog(db.wholeChange(img, 1)), img.Close()); err != nil {
			return err
		}
		db.stale = false
	}
	if err := db.noteJoined(db.peer.WALPos()); err != nil {
		return err
	}
	return db.recovered()
}

// admit lets local writers in. The node is the primary already: what they write
// from the moment at which the locks are gone is captured.
func (db *DB) admit(ctx context.Context) error {
	db.forgetWrites()
	db.mu.Lock()
	p := db.peer
	if p == nil || db.closed {
		db.local.Store(true)
		db.mu.Unlock()
		return nil
	}
	clear(db.dirty)
	db.allDirty, db.leftWAL = false, false
	if db.setLent(false) {
		// db.at is how far the log has what the peer wrote. What a program wrote to the file meanwhile was a checkpoint, or
		// something else than SQLite.
		db.allDirty = db.wroteLent.Load()
	} else {
		db.at = walPosOf(p)
	}
	db.settled = db.at
	db.peer = nil
	db.local.Store(true)
	db.mu.Unlock()

	// Not under db.mu: where nobody has the database open the peer takes its
	// write-ahead log away, through the mount.
	err := p.Close(ctx)
	db.mu.Lock()
	defer db.mu.Unlock()
	if _, serr := os.Stat(db.WALPath()); errors.Is(serr, fs.ErrNotExist) {
		db.at, db.settled = capture.WALPos{}, capture.WALPos{}
	}
	db.openWAL()
	db.poke()
	return err
}

// joined is the end of the log in a write-ahead log that a peer has made: no
// entry tells it, for entries name the write-ahead log of the node that wrote
// them.
func (db *DB) joinedPath() string { return filepath.Join(db.dir, "joined") }

func (db *DB) noteJoined(pos peer.WALPos) error {
	head, _ := db.txlog.Head()
	line := fmt.Sprintf("%08x %08x %d %016x\n", pos.Salt1, pos.Salt2, pos.Frame, head.Max)
	if err := durable.Replace(vfs.OS(), db.joinedPath(), []byte(line)); err != nil {
		return fmt.Errorf("note where the log ends: %w", err)
	}
	return nil
}

// joined returns the frame up to which the log has the write-ahead log with
// this header, if it was noted and the log has not lost its end since.
func (db *DB) joined(hdr sqlitefile.WALHeader) (frame uint32, ok bool, err error) {
	b, err := os.ReadFile(db.joinedPath())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	var salt1, salt2 uint32
	var txid uint64
	if _, err := fmt.Sscanf(string(b), "%x %x %d %x\n", &salt1, &salt2, &frame, &txid); err != nil {
		return 0, false, nil // torn by a power cut: as if it were not there
	}
	head, _ := db.txlog.Head()
	return frame, salt1 == hdr.Salt1 && salt2 == hdr.Salt2 && head.Max >= txid, nil
}
