package peer

import (
	"context"
	"errors"
	"fmt"

	"github.com/litefs/litefs/sqlitefile"
)

// ErrLent is returned by operations on a Peer whose WRITE lock others may have.
var ErrLent = errors.New("the database is lent to local writers")

// Lend lets go of WRITE, so that local writers write to the WAL. The other locks stay: nobody removes the WAL, nobody
// changes the journal mode. Until Reclaim the Peer does not know what the database holds, and every other operation
// but Close returns ErrLent.
func (p *Peer) Lend() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.lend(); err != nil {
		return fmt.Errorf("lend %s: %w", p.opt.Path, err)
	}
	return nil
}

func (p *Peer) lend() error {
	if err := p.lendable(); err != nil {
		return err
	}
	switch {
	case p.index.shut:
		return errors.New("reads are refused: the copy is too old")
	case p.index.dirty:
		if err := p.index.flush(); err != nil {
			return err
		}
	}
	if err := p.ensureHeader(); err != nil {
		return err
	}
	if err := unlock(p.index.f, sqlitefile.WALWriteLock, 1); err != nil {
		return err
	}
	p.lent = true
	return nil
}

// Shut takes WRITE of a Peer that is lent, if no local writer has it: none comes in any more. Reclaim has still to come.
func (p *Peer) Shut() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !p.lent {
		return true, nil
	}
	return setLock(p.index.f, exclusive, sqlitefile.WALWriteLock, 1)
}

// Reclaim takes WRITE back when no local writer has it, and finds out what they have published. A Peer that is not lent
// has it already.
func (p *Peer) Reclaim(ctx context.Context) error {
	err := poll(ctx, "local writers to end", func() (bool, error) {
		// Not held while waiting: who asks for something meanwhile is told ErrLent.
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed {
			return false, ErrClosed
		}
		if !p.lent {
			return true, nil
		}
		if ok, err := setLock(p.index.f, exclusive, sqlitefile.WALWriteLock, 1); !ok || err != nil {
			return false, err
		}
		if err := p.look(ctx); err != nil {
			return false, errors.Join(err, unlock(p.index.f, sqlitefile.WALWriteLock, 1))
		}
		p.lent = false
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("reclaim %s: %w", p.opt.Path, err)
	}
	return nil
}

// look reads the wal-index anew, or recovers it. WRITE is held.
func (p *Peer) look(ctx context.Context) error {
	size, hdr, err := p.databaseHeader()
	if err != nil {
		return err
	}
	if err := p.readyIndex(ctx, hdr, size); err != nil {
		return err
	}
	p.nextCkpt = 0
	return nil
}

// LeaveWAL closes the WAL, whose locks are elsewhere, so that the mount can open it in another mode. Until EnterWAL
// every operation but Close returns ErrLent.
func (p *Peer) LeaveWAL() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.lendable(); err != nil {
		return err
	}
	p.lent = true
	if err := p.wal.f.Close(); err != nil {
		return fmt.Errorf("close the WAL of %s: %w", p.opt.Path, err)
	}
	return nil
}

// EnterWAL opens the WAL again.
func (p *Peer) EnterWAL() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	f, err := p.openBeside("-wal")
	if err != nil {
		return fmt.Errorf("open the WAL of %s again: %w", p.opt.Path, err)
	}
	p.wal.f, p.lent = f, false
	return nil
}

// lendable says why the Peer cannot let go of its WAL. p.mu is held.
func (p *Peer) lendable() error {
	if err := p.usable(); err != nil {
		return err
	}
	if p.wal == nil {
		return errors.New("the database has no content")
	}
	return nil
}

// usable says why the Peer cannot be used. p.mu is held.
func (p *Peer) usable() error {
	switch {
	case p.closed:
		return ErrClosed
	case p.lent:
		return ErrLent
	}
	return nil
}
