package peer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/litefs/litefs/sqlitefile"
)

// Pages yields the pages of a transaction, in ascending order, each once. The
// data is valid until yield returns. An error of yield must be returned.
type Pages func(yield func(pgno uint32, data []byte) error) error

// Apply makes one transaction visible: pages become the content of the
// database, pageCount its size in pages. It never waits for a reader, with three
// exceptions: the first transaction of an empty database, and, until ctx ends
// (ErrReaders), a WAL above the hard limit and a change of the page size.
//
// The lock page is left out. Pages up to pageCount that nobody wrote are zero.
// The first transaction must have page 1 and sets the page size. One that has
// every page may change it (see changePageSize); any other must have the same
// (ErrPageSize).
//
// After an error nobody has seen anything of the transaction, unless the error
// came from the wal-index, when it may become visible with the next one. The
// cure is the same: apply it again.
func (p *Peer) Apply(ctx context.Context, pageCount, pageSize uint32, pages Pages) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.apply(ctx, pageCount, pageSize, pages); err != nil {
		return fmt.Errorf("apply to %s: %w", p.opt.Path, err)
	}
	return nil
}

func (p *Peer) apply(ctx context.Context, pageCount, pageSize uint32, pages Pages) error {
	if err := p.usable(); err != nil {
		return err
	}
	switch {
	case !sqlitefile.ValidPageSize(pageSize):
		return fmt.Errorf("page size %d is no power of two from 512 to 65536", pageSize)
	case pageCount == 0:
		return errors.New("a transaction that leaves no page is none of a database: remove the file")
	case p.load != nil:
		return errLoading
	case p.wal == nil:
		return p.applyFirst(ctx, pageCount, pageSize, pages)
	}
	if p.index.dirty {
		if err := p.index.flush(); err != nil {
			return err
		}
		p.setPosition()
	}
	if pageSize != p.pageSize {
		return p.changePageSize(ctx, pageCount, pageSize, pages)
	}
	if err := p.makeRoom(ctx); err != nil {
		return err
	}
	a, err := p.append(pageCount, checked(pageCount, pageSize, pages))
	defer func() { p.opt.Buffers.put(a.buf) }()
	if err != nil {
		return err
	}
	return p.publish(ctx, a, pageCount)
}

// publish writes the last frame of a transaction, and makes it visible.
func (p *Peer) publish(ctx context.Context, a *appender, pageCount uint32) error {
	if len(a.pgnos) == 0 {
		return nil // no page, same size
	}
	if err := a.seal(pageCount); err != nil {
		return err
	}
	if err := p.growFile(pageCount, len(a.pgnos)); err != nil {
		return err
	}
	if err := p.index.commit(a.pgnos, p.pageSize, pageCount, a.cksum); err != nil {
		return err
	}
	p.setPosition()
	p.afterCommit(ctx)
	return nil
}

// append writes the frames of a transaction to the WAL, but the last, and those that share a write with it. The caller
// puts the buffer back.
func (p *Peer) append(pageCount uint32, pages Pages) (*appender, error) {
	h := p.index.hdr
	cksum := h.FrameCksum
	if h.MaxFrame == 0 {
		if !p.wal.written {
			if err := p.wal.putHeader(true); err != nil {
				return &appender{}, err
			}
		}
		cksum = p.wal.hdr.Cksum
	}
	a := newAppender(p.wal, h.MaxFrame, cksum, p.opt.Buffers.take())
	err := pages(a.add)
	if err == nil && len(a.pgnos) == 0 && pageCount != p.pageCount.Load() {
		err = p.appendPage1(a) // only the size changes; a commit needs a frame
	}
	return a, err
}

func (p *Peer) appendPage1(a *appender) error {
	page := make([]byte, p.pageSize)
	if err := p.readPage(1, page); err != nil {
		return err
	}
	return a.add(1, page)
}

// checked leaves out the lock page and fails on what no transaction has.
func checked(pageCount, pageSize uint32, pages Pages) Pages {
	lock := sqlitefile.LockPgno(pageSize)
	return func(yield func(uint32, []byte) error) error {
		last := uint32(0)
		return pages(func(pgno uint32, data []byte) error {
			switch {
			case pgno <= last:
				return fmt.Errorf("page %d after page %d", pgno, last)
			case pgno > pageCount:
				return fmt.Errorf("page %d of a database of %d pages", pgno, pageCount)
			case uint32(len(data)) != pageSize:
				return fmt.Errorf("page %d has %d bytes, want %d", pgno, len(data), pageSize)
			}
			last = pgno
			if pgno == lock {
				return nil
			}
			return yield(pgno, data)
		})
	}
}

// growFile extends the database file with zeroes when it grows by more pages
// than the transaction has. Checkpoints of SQLite take a database that outgrows
// file and WAL together for corrupt (wal.c, walCheckpoint).
func (p *Peer) growFile(pageCount uint32, written int) error {
	if int64(pageCount)-int64(p.pageCount.Load()) <= int64(written) {
		return nil
	}
	fi, err := p.db.Stat()
	if err != nil {
		return err
	}
	if size := int64(pageCount) * int64(p.pageSize); fi.Size() < size {
		return p.db.Truncate(size)
	}
	return nil
}

// applyFirst writes the first transaction to the empty database file, under
// EXCLUSIVE: there is no snapshot of a reader to keep, and content that fills a
// database goes to the disk once. What makes the file a database are its first
// 100 bytes; they are written last, after the rest is on the disk, and lie in
// one sector, so that they are there or not. Only then
// come -wal and -shm, still under EXCLUSIVE, so that no reader sees the
// database without them.
func (p *Peer) applyFirst(ctx context.Context, pageCount, pageSize uint32, pages Pages) error {
	if err := p.lockExclusive(ctx); err != nil {
		return err
	}
	// A -wal that lies beside an empty file is of another database. SQLite
	// would delete it too, but only while the file is empty.
	err := removeIfThere(p.opt.Path + "-wal")
	if err == nil {
		err = p.writeFirst(pageCount, pageSize, checked(pageCount, pageSize, pages))
	}
	if err == nil {
		err = p.openFirst(ctx)
	}
	if err == nil {
		p.pageCount.Store(pageCount)
	} else {
		p.pageSize = 0
		p.pageCount.Store(0)
		err = errors.Join(err, p.closeWAL(true), p.db.Truncate(0))
	}
	return errors.Join(err, p.toShared())
}

func (p *Peer) writeFirst(pageCount, pageSize uint32, pages Pages) error {
	var page1 []byte
	w := &pageWriter{f: p.db, pageSize: pageSize, buf: p.opt.Buffers.take()}
	defer func() { p.opt.Buffers.put(w.buf) }()
	err := pages(func(pgno uint32, data []byte) error {
		if pgno == 1 {
			page1 = append(page1, data...)
			return nil
		}
		return w.add(pgno, data)
	})
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return err
	}
	if page1 == nil {
		return errors.New("first transaction of a database has no page 1")
	}
	if err := checkFirstPage(1, pageSize, page1); err != nil {
		return err
	}
	if err := p.db.Truncate(int64(pageCount) * int64(pageSize)); err != nil {
		return err
	}
	if _, err := p.db.WriteAt(page1[sqlitefile.HeaderSize:], sqlitefile.HeaderSize); err != nil {
		return err
	}
	return p.writeHeaderLast(page1[:sqlitefile.HeaderSize])
}

// writeHeaderLast makes a database of a file that has everything else.
func (p *Peer) writeHeaderLast(header []byte) error {
	if err := p.db.Sync(); err != nil {
		return err
	}
	if _, err := p.db.WriteAt(header, 0); err != nil {
		return err
	}
	return p.db.Sync()
}

// checkFirstPage fails on a page 1 that is not that of a database with pages of
// the given size: every connection would look for the others in vain.
func checkFirstPage(pgno, pageSize uint32, data []byte) error {
	if pgno != 1 {
		return nil
	}
	h, err := sqlitefile.ParseHeader(data)
	if err != nil {
		return fmt.Errorf("page 1 of a whole database: %w", err)
	}
	if h.PageSize != pageSize {
		return fmt.Errorf("%w: the header names %d, want %d", ErrPageSize, h.PageSize, pageSize)
	}
	return nil
}

// openFirst makes the WAL of a database that was just written.
func (p *Peer) openFirst(ctx context.Context) error {
	size, hdr, err := p.databaseHeader()
	if err != nil {
		return err
	}
	return p.openWAL(ctx, hdr, size)
}

// makeRoom lets the WAL begin anew if it can, and sees to the hard limit.
func (p *Peer) makeRoom(ctx context.Context) error {
	restarted, err := p.tryRestart()
	if restarted || err != nil || p.walSize.Load() < p.opt.HardWAL {
		return err
	}
	p.opt.Logger.Warn("WAL is at its hard limit, waiting for readers", "path", p.opt.Path, "bytes", p.walSize.Load())
	p.opt.Waiting.Store(true)
	defer p.opt.Waiting.Store(false)
	return p.mustRestart(ctx)
}

// mustRestart waits until the next frame is the first one of the WAL. Readers
// that come meanwhile do not prolong it: once all of the WAL is in the database
// they take their pages from there.
func (p *Peer) mustRestart(ctx context.Context) error {
	err := poll(ctx, "readers to leave the WAL", func() (bool, error) {
		if p.index.hdr.MaxFrame == 0 {
			return true, nil
		}
		if _, err := p.checkpoint(ctx); err != nil {
			return false, err
		}
		return p.tryRestart()
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrReaders, err)
	}
	return err
}

// tryRestart lets the next frame be the first one of the WAL, if all of it is
// in the database and no reader is in it (wal.c, walRestartLog).
//
// It takes CKPT as well, which wal.c does not: SQLite before 3.51.3 may be in a
// checkpoint that has read the old header, and would copy frames of the new
// WAL as if they were of the old one.
func (p *Peer) tryRestart() (restarted bool, err error) {
	x := p.index
	if x.hdr.MaxFrame == 0 {
		return false, nil
	}
	info, err := x.info()
	if err != nil || info.Backfill != x.hdr.MaxFrame {
		return false, err
	}
	ok, err := setLock(x.f, exclusive, sqlitefile.WALCkptLock, 1)
	if !ok || err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unlock(x.f, sqlitefile.WALCkptLock, 1)) }()
	return x.withSlots(1, sqlitefile.ReadMarks-1, p.restart)
}

func (p *Peer) restart() error {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("draw salt: %w", err)
	}
	if err := p.index.restart(binary.NativeEndian.Uint32(b[:])); err != nil {
		return err
	}
	p.wal.hdr.Seq++
	p.wal.hdr.Salt1, p.wal.hdr.Salt2 = p.index.hdr.Salt1, p.index.hdr.Salt2
	p.wal.written, p.wal.trim = false, true
	p.nextCkpt = 0
	p.setPosition()
	return nil
}
