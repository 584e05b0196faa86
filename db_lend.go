package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/durable"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/internal/vfs"
)

// This file makes transactions of a replica transactions of the primary: docs/write-forwarding.md. The primary's own
// peer writes them, as a local program would; so what is in the write-ahead log and not in the log of transactions is
// captured by whoever comes next.

// applyLentFor bounds one transaction: it waits for readers when the write-ahead log is at its hard limit.
const applyLentFor = 30 * time.Second

// The epoch in which a database was lent and not taken back yet: who finds it there in the same epoch fences.
func (db *DB) lentPath() string { return filepath.Join(db.dir, "lent") }

// lendOut takes the replica's locks on the primary's own files.
func (db *DB) lendOut(ctx context.Context, epoch uint64) error {
	if err := durable.Replace(vfs.OS(), db.lentPath(), []byte(strconv.FormatUint(epoch, 10)+"\n")); err != nil {
		return fmt.Errorf("note that it is lent: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lendPatience)
	defer cancel()
	if err := db.takePeer(ctx); err != nil {
		return errors.Join(fmt.Errorf("hold the primary's own writers back: %w", err), db.noteNotLent())
	}
	db.mu.Lock()
	if db.closed || db.peer == nil {
		db.mu.Unlock()
		return ErrDatabaseNotFound
	}
	db.at = walPosOf(db.peer)
	db.wroteLent.Store(false)
	db.setLent(true)
	db.mu.Unlock()
	return nil
}

// setLent reports what was before.
func (db *DB) setLent(lent bool) bool {
	was := db.onLoan.Swap(lent)
	switch {
	case lent && !was:
		db.store.lentOut.Add(1)
	case was && !lent:
		db.store.lentOut.Add(-1)
	}
	return was
}

func walPosOf(p *peer.Peer) capture.WALPos { return capturePos(p.WALPos()) }

func capturePos(pos peer.WALPos) capture.WALPos {
	return capture.WALPos{Salt1: pos.Salt1, Salt2: pos.Salt2, Frame: pos.Frame, Cksum: pos.Cksum}
}

// takeBackLent lets the primary's own writers in again. clean: the holder has nothing under way; otherwise the TXID that
// its next transaction would have had is taken first.
func (db *DB) takeBackLent(ctx context.Context, clean bool) error {
	// Not Store.Role, which a lease that is about to be renewed, or not, makes a replica's for a moment.
	if Role(db.store.role.Load()) != RolePrimary {
		db.setLent(false) // the locks stay. What comes now is of another epoch: there is nothing to fence
		return db.noteNotLent()
	}
	if !clean {
		if err := db.fence(); err != nil {
			return err
		}
	}
	if err := db.noteNotLent(); err != nil {
		return err
	}
	return db.admit(ctx)
}

// refuseLent refuses to cut off pages of a database that is lent: SQLite's checkpoints never do.
func (db *DB) refuseLent(size int64) error {
	if !db.onLoan.Load() {
		return nil
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	count := db.sums.Count()
	if u := db.undecided; u != nil {
		count = min(count, u.count)
	}
	if size < int64(count)*int64(db.sums.PageSize()) {
		return syscall.EBUSY
	}
	return nil
}

func (db *DB) noteNotLent() error {
	if err := os.Remove(db.lentPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note that it is not lent any more: %w", err)
	}
	return nil
}

// fence logs an entry that changes nothing.
func (db *DB) fence() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.sums.Count() == 0 {
		return nil
	}
	img, err := db.openAppliedImage()
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	defer img.Close() //nolint:errcheck // read only
	err = db.appendChange(change{
		commits: 1, pageSize: db.sums.PageSize(), count: db.sums.Count(), pgnos: []uint32{1}, sums: []uint64{db.sums.Get(1)},
		read: img.readPage, durable: true, wal: db.at, walFrom: db.at,
	})
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	return nil
}

// fenceLent fences a database that was lent when this node was killed, in the epoch that goes on. Nobody has written
// to it since.
func (db *DB) fenceLent(epoch uint64) error {
	b, err := os.ReadFile(db.lentPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// One that cannot be read was never synced, so that no holder has heard of it; one more entry does no harm.
	if was, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil || was == epoch {
		if err := db.fence(); err != nil {
			return err
		}
		db.log().Info("the write lock was lent when this node ended: its holder has lost it")
	}
	return db.noteNotLent()
}

// incoming is a transaction of a holder, verified.
type incoming struct {
	file  *os.File
	size  int64
	entry ltxlog.Entry
	pgnos []uint32
	sums  []uint64
}

func (in *incoming) close() {
	_ = in.file.Close() // it has no name
}

// pages gives its pages.
func (in *incoming) pages(b *ltxlog.Buffers) peer.Pages {
	return func(yield func(pgno uint32, data []byte) error) error {
		_, err := b.ReadEntry(io.NewSectionReader(in.file, 0, in.size), in.size, nil, yield)
		return err
	}
}

// scratch returns a file beside the record that has no name and goes with its descriptor.
func (db *DB) scratch() (*os.File, error) {
	f, err := os.CreateTemp(db.dir, "forward-*.tmp")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// receiveHeld takes a transaction from the network and verifies it. An error other than ErrNotJoined is of the network or of the disk.
func (db *DB) receiveHeld(tx HaltTx, r io.Reader, size int64) (in *incoming, err error) {
	f, err := db.scratch()
	if err != nil {
		return nil, fmt.Errorf("receive transaction %016x: %w", tx.Post.TXID, err)
	}
	in = &incoming{file: f, size: size}
	in.entry, err = db.store.logBuffers.ReadEntry(io.TeeReader(io.LimitReader(r, size), f), size,
		func(e ltxlog.Entry) error {
			if e.Min != tx.Post.TXID || e.Max != tx.Post.TXID || e.Pre != tx.Pre.Chksum || e.Epoch != tx.Epoch || e.Commit == 0 {
				return fmt.Errorf("%w: its header says %016x to %016x from %016x in epoch %d", ErrNotJoined, e.Min, e.Max, e.Pre, e.Epoch)
			}
			return nil
		},
		func(pgno uint32, data []byte) error {
			in.pgnos, in.sums = append(in.pgnos, pgno), append(in.sums, pagesum.Page(pgno, data))
			return nil
		})
	if err == nil && in.entry.Post != tx.Post.Chksum {
		err = fmt.Errorf("%w: it leads to checksum %016x, want %016x", ErrNotJoined, in.entry.Post, tx.Post.Chksum)
	}
	if err != nil {
		in.close()
		return nil, fmt.Errorf("receive transaction %016x: %w", tx.Post.TXID, err)
	}
	return in, nil
}

// commitLent writes a transaction to the write-ahead log and to the log. unlogged: readers see it, and the log does not
// have it. lending.work is held.
func (db *DB) commitLent(in *incoming) (unlogged bool, err error) {
	e := in.entry
	db.mu.Lock()
	p := db.peer
	switch {
	case db.closed || p == nil:
		err = ErrHaltLost
	case db.sumsErr != nil:
		err = db.sumsErr
	case db.sums.PageSize() != e.PageSize:
		err = fmt.Errorf("%w: pages of %d bytes, the database has pages of %d", ErrNotJoined, e.PageSize, db.sums.PageSize())
	default:
		if post := db.sums.SumAfter(in.each, e.Commit); post != e.Post {
			err = fmt.Errorf("%w: its pages lead to checksum %016x, it says %016x", ErrNotJoined, post, e.Post)
		}
	}
	db.mu.Unlock()
	if err != nil {
		return false, err
	}
	// Not under db.mu: what the peer writes through the mount may wait for a checkpoint of a local program, and that
	// for db.mu.
	ctx, cancel := context.WithTimeout(context.Background(), applyLentFor)
	defer cancel()
	if level := db.Level(); level.Gated() {
		return false, db.commitLentGated(ctx, p, in, level)
	}
	before := p.WALPos()
	err = p.Apply(ctx, e.Commit, e.PageSize, in.pages(&db.store.logBuffers))
	after := walPosOf(p)
	if err != nil && p.WALPos() == before {
		return false, err // nobody has seen anything
	}
	if err != nil {
		db.log().Error("a forwarded transaction is not wholly published yet: it will be with the next one", "error", err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer != p {
		return false, ErrHaltLost
	}
	from := db.at
	if from.Salt1 != after.Salt1 || from.Salt2 != after.Salt2 {
		from = capture.WALPos{}
	}
	err = db.appendChange(change{
		commits: 1, pageSize: e.PageSize, count: e.Commit, pgnos: in.pgnos, sums: in.sums, read: p.ReadPage,
		durable: true, wal: after, walFrom: from,
	})
	if head, _ := db.txlog.Head(); head.Max != e.Max {
		db.wroteLent.Store(true) // a checkpoint may have copied it already, and nobody was asked: all pages are compared
		return true, fmt.Errorf("log transaction %016x: %w", e.Max, err)
	}
	db.at = after
	db.store.stats.Forwarded.Add(1)
	return false, err
}

// each gives the checksums of its pages.
func (in *incoming) each(yield func(pgno uint32, sum uint64) bool) {
	for i, pgno := range in.pgnos {
		if !yield(pgno, in.sums[i]) {
			return
		}
	}
}
