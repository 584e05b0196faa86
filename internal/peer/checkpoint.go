package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/litefs/litefs/sqlitefile"
)

// drainFor is how long a WAL above the soft limit that is all in the database
// is given for its last readers to leave it: new ones do not enter.
const drainFor = 100 * time.Millisecond

// Checkpoint copies what it can of the WAL into the database file, without
// waiting for anyone (SQLite's PASSIVE). complete says that all of it is there
// and synced.
func (p *Peer) Checkpoint(ctx context.Context) (complete bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.usable()
	switch {
	case err != nil:
	case p.wal == nil:
		return true, nil
	case p.index.dirty:
		err = p.index.flush()
	}
	if err == nil {
		complete, err = p.checkpoint(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("checkpoint %s: %w", p.opt.Path, err)
	}
	return complete, nil
}

// afterCommit keeps the WAL small. The transaction is visible already, so
// nothing here may fail it.
func (p *Peer) afterCommit(ctx context.Context) {
	err := p.wal.shrink(p.walSize.Load(), p.opt.SoftWAL)
	if err == nil && p.walSize.Load() >= p.opt.SoftWAL && p.index.hdr.MaxFrame >= p.nextCkpt {
		err = p.autoCheckpoint(ctx)
	}
	if err != nil && ctx.Err() == nil {
		p.opt.Logger.Error("WAL is not checkpointed and grows", "path", p.opt.Path, "bytes", p.walSize.Load(), "error", err)
	}
}

// autoCheckpoint is not tried at each commit above the soft limit: while a
// reader is in the way, only when the WAL has grown by a quarter of it more.
func (p *Peer) autoCheckpoint(ctx context.Context) error {
	step := uint32(p.opt.SoftWAL / 4 / sqlitefile.FrameSize(p.pageSize))
	p.nextCkpt = p.index.hdr.MaxFrame + max(1, step)
	complete, err := p.checkpoint(ctx)
	if err != nil || !complete {
		return err
	}
	return p.drain(ctx)
}

// drain waits a moment for the readers in the WAL to leave it and restarts it.
func (p *Peer) drain(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, drainFor)
	defer cancel()
	err := poll(short, "readers to leave the WAL", p.tryRestart)
	if short.Err() != nil && errors.Is(err, short.Err()) {
		return nil
	}
	return err
}

// checkpoint is walCheckpoint of wal.c in PASSIVE mode.
func (p *Peer) checkpoint(ctx context.Context) (complete bool, err error) {
	x := p.index
	if x.hdr.MaxFrame == 0 {
		return true, nil
	}
	ok, err := setLock(x.f, exclusive, sqlitefile.WALCkptLock, 1)
	if !ok || err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unlock(x.f, sqlitefile.WALCkptLock, 1)) }()
	info, err := x.info()
	if err != nil || info.Backfill >= x.hdr.MaxFrame {
		return err == nil, err
	}
	safe, err := p.safeFrame(info)
	if err != nil || safe <= info.Backfill {
		return false, err
	}
	// READ0 keeps out readers that take the database file for the snapshot.
	done, err := x.withSlots(0, 1, func() error { return p.backfill(ctx, info.Backfill, safe) })
	return done && err == nil && safe == x.hdr.MaxFrame, err
}

// safeFrame returns the last frame that may be copied to the database: readers
// whose mark lies before it take their pages from the database as it is. Marks
// that nobody holds are moved out of the way.
func (p *Peer) safeFrame(info sqlitefile.CkptInfo) (uint32, error) {
	safe := p.index.hdr.MaxFrame
	for i := 1; i < sqlitefile.ReadMarks; i++ {
		mark := info.ReadMark[i]
		if mark >= safe {
			continue
		}
		free, err := p.index.setFreeMark(i, initialMark(i, safe))
		if err != nil {
			return 0, err
		}
		if !free {
			safe = mark
		}
	}
	return safe, nil
}

// backfill copies frames after from, up to safe, to the database: the WAL is
// synced first, so that what the database gets can be recovered; the database
// is synced, and cut to its size, when it has everything.
func (p *Peer) backfill(ctx context.Context, from, safe uint32) error {
	x := p.index
	if err := x.putUint32(safe, sqlitefile.BackfillAttemptedOffset); err != nil {
		return err
	}
	if err := p.wal.f.Sync(); err != nil {
		return fmt.Errorf("sync WAL: %w", err)
	}
	if err := p.copyFrames(ctx, from, safe); err != nil {
		return err
	}
	if safe == x.hdr.MaxFrame {
		if err := p.db.Truncate(int64(x.hdr.PageCount) * int64(p.pageSize)); err != nil {
			return err
		}
		if err := p.db.Sync(); err != nil {
			return fmt.Errorf("sync database: %w", err)
		}
	}
	return x.putUint32(safe, sqlitefile.BackfillOffset)
}

func (p *Peer) copyFrames(ctx context.Context, from, safe uint32) error {
	w := &pageWriter{f: p.db, pageSize: p.pageSize, buf: p.opt.Buffers.take()}
	defer func() { p.opt.Buffers.put(w.buf) }()
	page := make([]byte, p.pageSize)
	for _, v := range p.index.newest(from) {
		// A page that has a newer frame than what is safe is left alone, as in
		// wal.c: its readers find the older one in the WAL.
		if v.frame > safe || v.pgno > p.index.hdr.PageCount {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.wal.readPage(v.frame, page); err != nil {
			return err
		}
		if err := w.add(v.pgno, page); err != nil {
			return err
		}
	}
	return w.flush()
}

// version is a page and the frame that has it.
type version struct{ pgno, frame uint32 }

// newest returns the newest version of each page that has a frame after from,
// in the order of the database.
func (x *walIndex) newest(from uint32) []version {
	all := make([]version, 0, x.hdr.MaxFrame-from)
	for frame := x.hdr.MaxFrame; frame > from; frame-- {
		all = append(all, version{x.pgno(frame), frame})
	}
	slices.SortFunc(all, func(a, b version) int {
		return cmp.Or(cmp.Compare(a.pgno, b.pgno), cmp.Compare(b.frame, a.frame))
	})
	return slices.CompactFunc(all, func(a, b version) bool { return a.pgno == b.pgno })
}

// pageWriter writes pages to the database file, neighbours in one go.
type pageWriter struct {
	f        *file
	pageSize uint32
	buf      []byte
	first    uint32 // page number of buf's first page
}

func (w *pageWriter) add(pgno uint32, page []byte) error {
	n := uint32(len(w.buf)) / w.pageSize
	if n > 0 && (pgno != w.first+n || len(w.buf)+len(page) > ioChunk) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(w.buf) == 0 {
		w.first = pgno
	}
	w.buf = append(w.buf, page...)
	return nil
}

func (w *pageWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if _, err := w.f.WriteAt(w.buf, int64(w.first-1)*int64(w.pageSize)); err != nil {
		return fmt.Errorf("write pages from %d: %w", w.first, err)
	}
	w.buf = w.buf[:0]
	return nil
}

func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
