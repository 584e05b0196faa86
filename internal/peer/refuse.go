package peer

import (
	"context"
	"errors"
	"fmt"

	"github.com/litefs/litefs/sqlitefile"
)

// RefuseReads lets no transaction begin to read, on connections that are open as on new ones: with no valid header in the
// wal-index a reader wants to recover it, for which it needs WRITE, and gets SQLITE_BUSY while somebody holds RECOVER
// (wal.c, walTryBeginRead). Transactions that read already keep their snapshot to their end. Apply goes on; what it
// brings is seen when reads are allowed again. Where there is no wal-index there is nothing to be read.
func (p *Peer) RefuseReads(ctx context.Context, refuse bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The copy of a database that is lent is the newest that there is, and its wal-index is the writers'.
	if p.closed || p.lent || p.index == nil || p.index.shut == refuse {
		return nil
	}
	var err error
	if refuse {
		err = p.shut(ctx)
	} else {
		err = p.reopen()
	}
	if err != nil {
		return fmt.Errorf("reads of %s: %w", p.opt.Path, err)
	}
	return nil
}

func (p *Peer) shut(ctx context.Context) error {
	f := p.index.f
	if err := poll(ctx, "a recovery to end", func() (bool, error) {
		return setLock(f, exclusive, sqlitefile.WALRecoverLock, 1)
	}); err != nil {
		return err
	}
	// The first copy first: while they differ nobody can begin.
	none := make([]byte, sqlitefile.IndexHeaderSize)
	err := errors.Join(p.index.put(none, 0), p.index.put(none, sqlitefile.IndexHeaderSize))
	if err != nil {
		return errors.Join(err, p.reopen())
	}
	p.index.shut = true
	return nil
}

// reopen publishes what memory says.
func (p *Peer) reopen() error {
	p.index.shut = false
	err := p.index.flush()
	return errors.Join(err, unlock(p.index.f, sqlitefile.WALRecoverLock, 1))
}
