package peer

import (
	"context"
	"fmt"

	"github.com/litefs/litefs/sqlitefile"
)

// changePageSize applies a transaction that replaces the database by one with
// pages of another size, which is what VACUUM after PRAGMA page_size does in the
// rollback journal modes.
//
// SQLite itself never does that to a WAL, but its connections follow: frames
// have the size that the wal-index names (wal.c, walIndexReadHdr), and the cache
// takes that of page 1 (btree.c, lockBtree). So the transaction goes through the
// WAL as any other, and readers keep their snapshots. Writing the new pages to
// the database file under EXCLUSIVE instead would wait for every connection to
// close, not only to end its transaction, and a crash would leave neither the
// old nor the new database.
//
// All frames of a WAL have one size: it must restart first, and its readers have
// to leave it for that. Those that read the database file alone stay, and so
// does the file, until a checkpoint finds them gone.
func (p *Peer) changePageSize(ctx context.Context, pageCount, pageSize uint32, pages Pages) error {
	if err := p.mustRestart(ctx); err != nil {
		return err
	}
	p.wal.hdr.PageSize, p.wal.written = pageSize, false
	a, err := p.append(pageCount, p.everyPage(pageCount, pageSize, pages))
	defer func() { p.opt.Buffers.put(a.buf) }()
	if err == nil {
		err = a.seal(pageCount)
	}
	if err != nil {
		p.wal.hdr.PageSize, p.wal.written = p.pageSize, false
		return err
	}
	p.opt.Logger.Info("page size changes", "path", p.opt.Path, "from", p.pageSize, "to", pageSize)
	// Before the commit: when it fails, it is made good by the next flush.
	p.pageSize = pageSize
	if err := p.index.commit(a.pgnos, pageSize, pageCount, a.cksum); err != nil {
		return err
	}
	p.setPosition()
	p.afterCommit(ctx)
	// The file still names the old page size. Nobody who reads it through the
	// WAL minds, but it should not stay for long.
	if _, err := p.checkpoint(ctx); err != nil && ctx.Err() == nil {
		p.opt.Logger.Error("database with a new page size is not checkpointed", "path", p.opt.Path, "error", err)
	}
	return nil
}

// everyPage is checked for a transaction that must have every page.
func (p *Peer) everyPage(pageCount, pageSize uint32, pages Pages) Pages {
	lock := sqlitefile.LockPgno(pageSize)
	return func(yield func(uint32, []byte) error) error {
		next := uint32(1)
		missing := func() error {
			return fmt.Errorf("%w: %d, want %d; page %d is missing and would be of the old size", ErrPageSize, pageSize, p.pageSize, next)
		}
		err := checked(pageCount, pageSize, pages)(func(pgno uint32, data []byte) error {
			if pgno != next {
				return missing()
			}
			if err := checkFirstPage(pgno, pageSize, data); err != nil {
				return err
			}
			if next++; next == lock {
				next++
			}
			return yield(pgno, data)
		})
		if err == nil && next <= pageCount {
			return missing()
		}
		return err
	}
}
