package peer

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/sqlitefile"
)

// Load writes the first content of an empty database as it comes, in any order
// and over any time. From Load to Finish or Abort the database is locked
// EXCLUSIVE: nobody sees a part of it. Its header is written last, as by the
// first transaction of applyFirst, and the same holds for a file without one.
type Load struct {
	p        *Peer
	pageSize uint32
	header   []byte // the first 100 bytes of page 1; nil until they have come
	unsynced int64  // bytes written since the disk was last told to begin
}

// loadBehind is how many bytes are written before the disk is told to begin
// with them, so that the sync at the end does not find all of them.
const loadBehind = 8 << 20

var errLoading = errors.New("the first content of the database is being written")

// Load begins. It waits for readers of the empty file until ctx ends.
func (p *Peer) Load(ctx context.Context, pageSize uint32) (*Load, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := func() error {
		if err := p.usable(); err != nil {
			return err
		}
		switch {
		case p.load != nil:
			return errLoading
		case p.wal != nil:
			return errors.New("the database has content")
		case !sqlitefile.ValidPageSize(pageSize):
			return fmt.Errorf("page size %d is no power of two from 512 to 65536", pageSize)
		}
		if err := p.lockExclusive(ctx); err != nil {
			return err
		}
		// As in applyFirst: a -wal beside an empty file is of another database.
		return removeIfThere(p.opt.Path + "-wal")
	}()
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", p.opt.Path, err)
	}
	p.load = &Load{p: p, pageSize: pageSize}
	return p.load, nil
}

// Write writes whole pages from page first on.
func (l *Load) Write(first uint32, pages []byte) error {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if err := l.write(first, pages); err != nil {
		return fmt.Errorf("load %s: %w", l.p.opt.Path, err)
	}
	return nil
}

func (l *Load) write(first uint32, pages []byte) error {
	switch {
	case l.p.load != l:
		return ErrClosed
	case first == 0 || len(pages) == 0 || len(pages)%int(l.pageSize) != 0:
		return fmt.Errorf("%d bytes from page %d on", len(pages), first)
	}
	at := int64(first-1) * int64(l.pageSize)
	if first == 1 {
		if err := checkFirstPage(1, l.pageSize, pages); err != nil {
			return err
		}
		l.header = append([]byte(nil), pages[:sqlitefile.HeaderSize]...)
		at, pages = sqlitefile.HeaderSize, pages[sqlitefile.HeaderSize:]
	}
	if _, err := l.p.db.WriteAt(pages, at); err != nil {
		return fmt.Errorf("write pages from %d: %w", first, err)
	}
	if l.unsynced += int64(len(pages)); l.unsynced >= loadBehind {
		l.unsynced = 0
		// Only a hint: what counts is the sync of Finish.
		_ = unix.SyncFileRange(int(l.p.db.real().Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return nil
}

// Resize cuts the file, or grows it with zeroes, to a number of pages.
func (l *Load) Resize(pageCount uint32) error {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.p.load != l {
		return fmt.Errorf("load %s: %w", l.p.opt.Path, ErrClosed)
	}
	return l.p.db.Truncate(int64(pageCount) * int64(l.pageSize))
}

// Finish makes the content, of pageCount pages, durable, and then a database.
// After an error the load goes on: Finish again, or Abort.
func (l *Load) Finish(ctx context.Context, pageCount uint32) error {
	p := l.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := l.finish(ctx, pageCount); err != nil {
		return fmt.Errorf("load %s: %w", p.opt.Path, err)
	}
	return nil
}

func (l *Load) finish(ctx context.Context, pageCount uint32) error {
	p := l.p
	switch {
	case p.load != l:
		return ErrClosed
	case l.header == nil:
		return errors.New("page 1 has not come")
	}
	if err := p.db.Truncate(int64(pageCount) * int64(l.pageSize)); err != nil {
		return err
	}
	if err := p.writeHeaderLast(l.header); err != nil {
		return err
	}
	if err := p.openFirst(ctx); err != nil {
		return errors.Join(err, p.closeWAL(true))
	}
	p.load = nil
	p.pageCount.Store(pageCount)
	return p.toShared()
}

// Abort empties the file. It does nothing after Finish.
func (l *Load) Abort() error {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	return l.abort()
}

func (l *Load) abort() error {
	if l.p.load != l {
		return nil
	}
	l.p.load = nil
	if err := errors.Join(l.p.db.Truncate(0), l.p.toShared()); err != nil {
		return fmt.Errorf("give up to load %s: %w", l.p.opt.Path, err)
	}
	return nil
}
