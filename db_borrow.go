package litefs

import (
	"bytes"
	"context"
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
	"github.com/litefs/litefs/internal/walwrite"
)

// This file is what a write lock borrowed from the primary means for the files of a replica: docs/write-forwarding.md.
// A commit waits at its last frame, as one at level quorum does, until the primary has the transaction.

// passedTx is a transaction that the primary has, whose last frame is in the write-ahead log, and which SQLite is about to
// publish. It is in the log; the checksums and the position are before it.
type passedTx struct {
	entry ltxlog.Entry
	pgnos []uint32
	sums  []uint64
	at    capture.WALPos // after it
}

// outgoing is a transaction on its way to the primary.
type outgoing struct {
	tx    HaltTx
	file  *os.File // an LTX file, without a name
	size  int64
	pgnos []uint32
	sums  []uint64
	at    capture.WALPos
}

func (o *outgoing) close() {
	_ = o.file.Close() // it has no name
}

// forward lets the commit frame into the write-ahead log when the primary has the transaction. An error refuses the
// commit: the frame was never in the file.
func (db *DB) forward(v walwrite.Verdict) error {
	b := db.borrowed.Load()
	if b == nil {
		return errors.New("this node is a replica")
	}
	o, err := db.prepareForward(b, v)
	if err != nil {
		b.lose(err)
		return err
	}
	if o == nil { // the end of a sector, filled up
		return nil
	}
	defer o.close()
	// Nothing is held: entries come in meanwhile, this one among them.
	if err := b.commit(o); err != nil {
		b.lose(err)
		return err
	}
	e, err := db.logForwarded(o)
	if err == nil {
		err = db.admitForwarded(b, v, o, e)
	}
	if err != nil {
		err = fmt.Errorf("the primary has the transaction, this node has not: %w", err)
		b.lose(err)
	}
	return err
}

// prepareForward makes an LTX file of the transaction at the gate. nil: it changes nothing and was let in.
func (db *DB) prepareForward(b *borrowed, v walwrite.Verdict) (*outgoing, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer == nil {
		return nil, ErrDatabaseNotFound
	}
	if err := b.usable(); err != nil {
		return nil, err
	}
	if db.openWAL(); db.wal == nil {
		return nil, errors.New("the write-ahead log cannot be read")
	}
	if last := db.passed; last != nil && v.Lowest <= last.at.Frame {
		return nil, fmt.Errorf("transaction %016x was not published by its writer, which died", last.entry.Max)
	}
	wal := overlay{db.wal.file, v.Offset, v.Bytes}
	batch, err := db.scanFrame(wal, v)
	if err != nil {
		return nil, err
	}
	if last := db.passed; last != nil {
		if repeats, err := db.repeatsLetIn(batch, wal); err != nil {
			return nil, err
		} else if repeats {
			db.at, last.at = batch.To, batch.To
			return nil, db.writeFrame(v)
		}
		if batch.From.Frame == 0 && last.at.Frame > 0 {
			return nil, fmt.Errorf("the write-ahead log began anew before transaction %016x was published", last.entry.Max)
		}
		// Who goes on behind it has published it. Before the pages of this one are named: those that the database grew by
		// and nobody wrote are told from its size on record.
		if err := db.recordLetIn(); err != nil {
			return nil, err
		}
	}
	c, done, err := db.changeOf(batch, wal)
	if err != nil {
		return nil, err
	}
	defer done() //nolint:errcheck // read only
	if c.sums, err = db.hashPages(c); err != nil {
		return nil, err
	}
	return db.pack(b, c, batch)
}

// repeatsLetIn reports whether the frames of batch are the last page of the transaction again that was let in: SQLite
// pads its commit to the end of a sector. db.mu is held.
func (db *DB) repeatsLetIn(batch capture.Batch, wal io.ReaderAt) (bool, error) {
	last := db.passed
	if len(batch.Pages) != 1 || batch.PageCount != last.entry.Commit {
		return false, nil
	}
	i, found := slices.BinarySearch(last.pgnos, batch.Pages[0].Pgno)
	if !found {
		return false, nil
	}
	b := db.page(batch.PageSize)
	if err := capture.ReadPage(wal, batch.Pages[0].Frame, batch.PageSize, b); err != nil {
		return false, err
	}
	return pagesum.Page(last.pgnos[i], b) == last.sums[i], nil
}

// pack writes the LTX file of c, which joins the log's head. db.mu is held.
func (db *DB) pack(b *borrowed, c change, batch capture.Batch) (o *outgoing, err error) {
	head, _ := db.txlog.Head()
	pre := Pos{TXID: head.Max, Chksum: head.Post}
	if pre != b.pos || db.Pos() != pre {
		return nil, fmt.Errorf("%w: the primary has gone on to %v", ErrHaltLost, pre)
	}
	post := db.sums.SumAfter(func(yield func(uint32, uint64) bool) {
		for i, pgno := range c.pgnos {
			if !yield(pgno, c.sums[i]) {
				return
			}
		}
	}, c.count)
	o = &outgoing{
		tx:    HaltTx{Epoch: b.lease.Epoch, Pre: pre, Post: Pos{TXID: pre.TXID + 1, Chksum: post}},
		pgnos: c.pgnos, sums: c.sums, at: batch.To,
	}
	if o.file, err = db.scratch(); err != nil {
		return nil, err
	}
	o.size, err = db.store.logBuffers.WriteEntry(o.file, ltxlog.Header{
		Min: o.tx.Post.TXID, Max: o.tx.Post.TXID, Pre: pre.Chksum, Commit: c.count, PageSize: c.pageSize,
		Epoch: o.tx.Epoch, Timestamp: time.Now(),
	}, db.pageSeq(c), post)
	if err != nil {
		o.close()
		return nil, fmt.Errorf("write it for the primary: %w", err)
	}
	b.underWay.Store(&o.tx)
	return o, nil
}

// logForwarded puts a transaction that the primary has into the log, durably, if the stream has not done so already.
func (db *DB) logForwarded(o *outgoing) (ltxlog.Entry, error) {
	db.ingest.Lock()
	defer db.ingest.Unlock()
	if e, ok := db.txlog.Find(o.tx.Post.TXID); ok {
		if e.Max != o.tx.Post.TXID || e.Post != o.tx.Post.Chksum || e.Epoch != o.tx.Epoch {
			return e, fmt.Errorf("the log has another transaction %016x", o.tx.Post.TXID)
		}
		return e, db.txlog.Sync()
	}
	e, err := db.txlog.Import(io.NewSectionReader(o.file, 0, o.size), o.size, true)
	if err != nil {
		return e, err
	}
	db.made.Store(e.Max)
	return e, db.epochList.note(e, true)
}

// admitForwarded writes the frame.
func (db *DB) admitForwarded(b *borrowed, v walwrite.Verdict, o *outgoing, e ltxlog.Entry) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.writeFrame(v); err != nil {
		return err
	}
	db.passed = &passedTx{entry: e, pgnos: o.pgnos, sums: o.sums, at: o.at}
	db.at = o.at
	b.pos = o.tx.Post
	b.underWay.Store(nil)
	db.poke()
	return nil
}

// recordLetIn makes the transaction that was let in the position: SQLite has published it. db.mu is held.
func (db *DB) recordLetIn() error {
	last := db.passed
	if err := db.recordApplied(last.entry, last.pgnos, last.sums); err != nil {
		return err
	}
	db.passed = nil
	db.publishAt(last.entry)
	db.store.MarkDirty(db.id)
	db.store.tellApplied(db.id)
	return nil
}

// settleLetIn records the transaction that was let in if the wal-index says that it is published. db.mu is held.
func (db *DB) settleLetIn() error {
	if db.passed == nil || db.borrowed.Load() == nil {
		return nil
	}
	limit, err := db.publishedLimit()
	if err != nil || !limit.Covers(db.passed.at) {
		return err
	}
	return db.recordLetIn()
}

// endsCheckpoint is called before a checkpoint of a borrowed database comes to its end, after which the write-ahead log
// may begin anew: what was let in is published by now, or never will be.
func (db *DB) endsCheckpoint() error {
	b := db.borrowed.Load()
	if b == nil {
		return nil
	}
	// Not Lock: a peer that has the database back applies under db.mu, and may wait for the file that is being truncated.
	for !db.mu.TryLock() {
		if db.borrowed.Load() == nil {
			return nil
		}
		nap(lookAgainMin)
	}
	defer db.mu.Unlock()
	if err := db.settleLetIn(); err != nil {
		return err
	}
	if db.passed != nil {
		b.lose(errors.New("a transaction was not published by its writer, which died"))
		return fmt.Errorf("transaction %016x is not published", db.passed.entry.Max)
	}
	return nil
}

// lendHere lets local programs write: their commits come to forward.
func (db *DB) lendHere(b *borrowed) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer == nil {
		return ErrDatabaseNotFound
	}
	if head, _ := db.txlog.Head(); db.Pos() != b.pos || head.Max != b.pos.TXID || head.Post != b.pos.Chksum {
		return fmt.Errorf("%w: the database is at %v, the primary lent it at %v", ErrHaltLost, db.Pos(), b.pos)
	}
	db.at = walPosOf(db.peer)
	db.borrowed.Store(b)
	if err := db.peer.Lend(); err != nil {
		db.borrowed.Store(nil)
		return err
	}
	return nil
}

// reclaim takes the replica's lock back, which waits for local writers, and applies what the stream has brought.
func (db *DB) reclaim(ctx context.Context) error {
	db.mu.Lock()
	p, b := db.peer, db.borrowed.Load()
	db.mu.Unlock()
	if b == nil {
		return nil
	}
	if p != nil {
		if err := p.Reclaim(ctx); err != nil {
			return err
		}
	}
	db.mu.Lock()
	if last := db.passed; last != nil && p != nil && db.peer == p {
		// Otherwise it is applied like any entry of the log: the same pages, whether they are there or not.
		if at := walPosOf(p); at.Salt1 == last.at.Salt1 && at.Salt2 == last.at.Salt2 && at.Frame >= last.at.Frame {
			if err := db.recordLetIn(); err != nil {
				db.log().Error("a forwarded transaction is applied again", "error", err)
			}
		}
	}
	db.passed = nil
	db.closeWAL()
	db.at = capture.WALPos{}
	db.borrowed.Store(nil)
	db.mu.Unlock()
	db.forgetWrites()
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if _, err := db.catchUp(ctx); err != nil {
		db.log().Warn("what came while the database was lent is not applied yet", "error", err)
	}
	return nil
}

// shutWriters keeps local programs from beginning to write to a database that is lent here. It reports false while one is in
// a transaction.
func (db *DB) shutWriters() bool {
	db.mu.Lock()
	p := db.peer
	db.mu.Unlock()
	if p == nil {
		return true
	}
	shut, err := p.Shut()
	if err != nil {
		db.log().Error("the lock is given back, whoever writes", "error", err)
	}
	return shut || err != nil
}

// foreign reports whether the log has gone on without the holder of b. db.mu is held.
func (db *DB) foreign(b *borrowed) bool {
	head, ok := db.txlog.Head()
	if !ok || head.Max == b.pos.TXID && head.Post == b.pos.Chksum {
		return false
	}
	tx := b.underWay.Load()
	return tx == nil || !tx.is(head)
}

// directWAL has the peer open the write-ahead log so that each write of a local program comes to us, or as it is open
// otherwise. It reports whether it is.
func (db *DB) directWAL(ctx context.Context, direct bool) (bool, error) {
	db.wantDirect.Store(direct)
	return db.reopenWAL(ctx, direct)
}

// reopenWAL has the peer close and open the write-ahead log, where it is not open as it should be.
func (db *DB) reopenWAL(ctx context.Context, direct bool) (bool, error) {
	path := db.Name() + "-wal"
	if db.store.gatedWAL(path) == direct {
		return true, nil
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed || db.peer == nil {
		return false, ErrDatabaseNotFound
	}
	if err := db.peer.LeaveWAL(); err != nil {
		return false, err
	}
	// The kernel tells of a close afterwards.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	for closed := false; !closed && db.store.isOpen(path); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			closed = true // other programs have it open
		}
	}
	if err := db.peer.EnterWAL(); err != nil {
		return false, err
	}
	return db.store.gatedWAL(path) == direct, nil
}

// known reports whether the file at r is an entry that this node has made, under the primary's lock, and takes it from r
// then. Otherwise all is a reader of it.
func (db *DB) known(r io.Reader, size int64) (known bool, all io.Reader, err error) {
	made := db.made.Load()
	if made == 0 || size < ltx.HeaderSize {
		return false, r, nil
	}
	b := make([]byte, ltx.HeaderSize)
	n, err := io.ReadFull(r, b)
	all = io.MultiReader(bytes.NewReader(b[:n]), r)
	var h ltx.Header
	if err != nil || h.UnmarshalBinary(b) != nil || uint64(h.MaxTXID) > made {
		return false, all, nil // what is wrong with it is said by who reads it
	}
	e, ok := db.txlog.Find(uint64(h.MaxTXID))
	known = ok && h.MinTXID > 1 && e.Min == uint64(h.MinTXID) && e.Max == uint64(h.MaxTXID) && e.Pre == uint64(h.PreApplyChecksum) && e.Epoch == h.NodeID
	if known {
		_, err = io.CopyN(io.Discard, r, size-ltx.HeaderSize)
		return true, nil, err
	}
	return false, all, nil
}

func (t HaltTx) is(e ltxlog.Entry) bool {
	return e.Max == t.Post.TXID && e.Post == t.Post.Chksum && e.Epoch == t.Epoch
}

// inLog says what the log here, which the stream brings, knows of a transaction. Unknown: nothing yet.
func (db *DB) inLog(tx HaltTx) HaltOutcome {
	head, _ := db.txlog.Head()
	if head.Max < tx.Post.TXID || db.hold.Load() < tx.Post.TXID {
		return HaltUnknown // it may be on its way, or be taken back
	}
	out := db.resolve(tx)
	if out == HaltCommitted && db.Level().Gated() {
		return HaltUnknown // who else has it the primary knows
	}
	return out
}
