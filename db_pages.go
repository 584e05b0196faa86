package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
)

// PageSums returns the checksums on record, and the position that they lead to
// or are on the way to.
func (db *DB) PageSums() (PageSums, Pos) {
	pageSize, sums := db.sums.All()
	return PageSums{PageSize: pageSize, Sums: sums}, db.Pos()
}

// Locate says how the history of another node relates to this one; for
// RelationForked, with the last transaction that both have, 0 if none is known.
// log holds positions of the other node's log, newest first.
func (db *DB) Locate(log []LogPos) (Relation, uint64) {
	return db.epochList.get().locate(log, db.txlog.Entries())
}

// logPositions returns positions of this node's log, newest first.
func (db *DB) logPositions() []LogPos {
	entries := db.txlog.Entries()
	var log []LogPos
	for i := len(entries) - 1; i >= 0 && len(log) < MaxLogPositions-1; i-- {
		e := entries[i]
		log = append(log, LogPos{e.Epoch, Pos{TXID: e.Max, Chksum: e.Post}})
		if i == 0 && e.Min > 1 {
			log = append(log, LogPos{e.Epoch, Pos{TXID: e.Min - 1, Chksum: e.Pre}})
		}
	}
	return log
}

// DiffLTX returns an LTX file that takes a database whose pages have the
// checksums of base to this one's newest position: every page that differs, as
// one transaction. ErrSnapshotNeeded: too many do, or it cannot be said in a
// file that is no snapshot.
//
// As for a snapshot, pages are copied with no lock that an application could
// feel, what changes meanwhile is copied again, the last of it while captures
// wait, and a page is proved by its checksum on record.
func (db *DB) DiffLTX(ctx context.Context, base PageSums) (*LTXReader, error) {
	tmp, err := unlinkedTemp(db.store.path, ".pages-*")
	if err != nil {
		return nil, fmt.Errorf("pages that differ: %w", err)
	}
	d := &pageDiff{db: db, tmp: tmp, base: base, have: make(map[uint32]copiedPage)}
	r, err := d.make(ctx)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return nil, fmt.Errorf("pages that differ: %w", err)
	}
	return r, nil
}

// unlinkedTemp makes a file that is gone when it is closed, whatever crashes.
func unlinkedTemp(dir, pattern string) (*os.File, error) {
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// pageDiff is a copy of the pages that differ from base, in the making.
type pageDiff struct {
	db   *DB
	tmp  *os.File // pages, in the order in which they were first copied
	base PageSums
	have map[uint32]copiedPage
}

type copiedPage struct {
	slot int64
	sum  uint64
}

// diffRun is how many pages are looked at, and diffCopies how many are copied,
// while captures wait.
const (
	diffRun    = 1 << 14
	diffCopies = 256
)

func (d *pageDiff) make(ctx context.Context) (*LTXReader, error) {
	for range snapshotRounds {
		for pgno := uint32(1); pgno > 0; {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			d.db.mu.Lock()
			next, err := d.copyRun(pgno, diffRun, diffCopies)
			d.db.mu.Unlock()
			if err != nil {
				return nil, err
			}
			pgno = next
		}
	}
	return d.finish(ctx)
}

// copyRun looks at pages from pgno on and copies those that differ; it returns
// where to go on, 0 at the end. db.mu is held.
func (d *pageDiff) copyRun(pgno, look, copies uint32) (next uint32, err error) {
	db := d.db
	if db.closed {
		return 0, ErrDatabaseNotFound
	}
	if ps := db.sums.PageSize(); ps != d.base.PageSize {
		return 0, fmt.Errorf("pages have %d bytes, there %d: %w", ps, d.base.PageSize, ErrSnapshotNeeded)
	}
	count := db.sums.Count()
	var img *image
	defer func() {
		if img != nil {
			err = errors.Join(err, img.Close())
		}
	}()
	b := make([]byte, d.base.PageSize)
	for ; pgno <= count && look > 0 && copies > 0; pgno, look = pgno+1, look-1 {
		want := db.sums.Get(pgno)
		if want == d.base.Get(pgno) || want == d.have[pgno].sum {
			continue
		}
		if img == nil {
			if img, err = db.openAppliedImage(); err != nil {
				return 0, err
			}
		}
		if err := img.readPage(pgno, b); err != nil {
			return 0, err
		}
		if pagesum.Page(pgno, b) != want {
			continue // a transaction is not captured yet; the next round has it
		}
		if err := d.keep(pgno, want, b); err != nil {
			return 0, err
		}
		copies--
	}
	if pgno > count {
		return 0, TooManyPages(len(d.have), int(count))
	}
	return pgno, nil
}

func (d *pageDiff) keep(pgno uint32, sum uint64, b []byte) error {
	c, ok := d.have[pgno]
	if !ok {
		c.slot = int64(len(d.have))
	}
	if _, err := d.tmp.WriteAt(b, c.slot*int64(len(b))); err != nil {
		return err
	}
	c.sum = sum
	d.have[pgno] = c
	return nil
}

// finish copies the last pages while captures wait, and encodes the file.
func (d *pageDiff) finish(ctx context.Context) (*LTXReader, error) {
	db := d.db
	db.mu.Lock()
	defer db.mu.Unlock()
	for tries := 0; ; tries++ {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if db.closed {
			return nil, ErrDatabaseNotFound
		}
		if db.peer == nil && db.store.Role() != RoleReplica {
			if err := db.captureWAL(false); err != nil {
				return nil, err
			}
		}
		if _, err := d.copyRun(1, 1<<31, 1<<31); err != nil {
			return nil, err
		}
		pgnos, missing := d.complete()
		if missing == 0 {
			return d.encode(pgnos)
		}
		if tries == 100 {
			return nil, fmt.Errorf("page %d does not have its checksum on record: run `litefs verify` on this node", missing)
		}
		// A rollback-journal transaction is under way. Let it end.
		db.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		db.mu.Lock()
	}
}

// complete returns the pages that differ, or the first that could not be copied.
func (d *pageDiff) complete() (pgnos []uint32, missing uint32) {
	sums := d.db.sums
	for pgno := uint32(1); pgno <= sums.Count(); pgno++ {
		switch want := sums.Get(pgno); {
		case want == d.base.Get(pgno):
		case want == d.have[pgno].sum:
			pgnos = append(pgnos, pgno)
		default:
			return nil, pgno
		}
	}
	return pgnos, 0
}

// encode makes the LTX file, which is unlinked already. db.mu is held.
func (d *pageDiff) encode(pgnos []uint32) (*LTXReader, error) {
	head, ok := d.db.txlog.Head()
	if !ok || head.Max == 1 {
		return nil, fmt.Errorf("transaction 1 has every page: %w", ErrSnapshotNeeded)
	}
	if pos := d.db.Pos(); pos.TXID != head.Max || pos.Chksum != head.Post || head.PageSize != d.base.PageSize {
		return nil, fmt.Errorf("the files are at %s, the log at %016x/%016x", pos, head.Max, head.Post)
	}
	out, err := unlinkedTemp(d.db.store.path, ".pages-*")
	if err != nil {
		return nil, err
	}
	size, err := d.encodeTo(out, head, pgnos)
	if err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return &LTXReader{ReadCloser: out, Size: size, MinTXID: head.Max, MaxTXID: head.Max, Post: head.Post}, nil
}

func (d *pageDiff) encodeTo(w io.Writer, head ltxlog.Entry, pgnos []uint32) (int64, error) {
	return encodeFile(w, ltx.Header{
		Version: ltx.Version, PageSize: d.base.PageSize, Commit: head.Commit,
		MinTXID: ltx.TXID(head.Max), MaxTXID: ltx.TXID(head.Max), Timestamp: head.Timestamp.UnixMilli(),
		PreApplyChecksum: ltx.Checksum(d.base.Checksum()), NodeID: head.Epoch,
	}, slices.Values(pgnos), head.Post, func(pgno uint32, b []byte) error {
		_, err := d.tmp.ReadAt(b, d.have[pgno].slot*int64(len(b)))
		return err
	})
}
