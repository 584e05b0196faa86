package peer

import (
	"context"
	"errors"
	"fmt"
)

// Staged is a transaction that is ready to be published, and that nobody sees: its last frame is not in the WAL.
type Staged struct {
	Before, After WALPos // where it begins and ends in the WAL. After has no checksum.

	p         *Peer
	a         *appender
	pageCount uint32
}

// Stage is Apply up to where the transaction would become visible. Until Publish, or Drop, the caller does nothing else that
// writes to the database. The page size is the database's (ErrPageSize).
func (p *Peer) Stage(ctx context.Context, pageCount, pageSize uint32, pages Pages) (*Staged, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.stage(ctx, pageCount, pageSize, pages)
	if err != nil {
		return nil, fmt.Errorf("stage for %s: %w", p.opt.Path, err)
	}
	return s, nil
}

func (p *Peer) stage(ctx context.Context, pageCount, pageSize uint32, pages Pages) (*Staged, error) {
	if err := p.usable(); err != nil {
		return nil, err
	}
	switch {
	case pageCount == 0:
		return nil, errors.New("a transaction that leaves no page is none of a database: remove the file")
	case p.wal == nil || p.load != nil:
		return nil, errors.New("the database has no content yet")
	case pageSize != p.pageSize:
		return nil, fmt.Errorf("%w: %d, the database has pages of %d", ErrPageSize, pageSize, p.pageSize)
	}
	if p.index.dirty {
		if err := p.index.flush(); err != nil {
			return nil, err
		}
		p.setPosition()
	}
	if err := p.makeRoom(ctx); err != nil {
		return nil, err
	}
	a, err := p.append(pageCount, checked(pageCount, pageSize, pages))
	if err != nil {
		p.opt.Buffers.put(a.buf)
		return nil, err
	}
	s := &Staged{Before: p.walPos(), p: p, a: a, pageCount: pageCount}
	s.After = WALPos{Salt1: s.Before.Salt1, Salt2: s.Before.Salt2, Frame: s.Before.Frame + uint32(len(a.pgnos))}
	return s, nil
}

// Publish makes it visible. An error is as of Apply.
func (s *Staged) Publish(ctx context.Context) error {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.opt.Buffers.put(s.a.buf) }()
	err := p.usable()
	if err == nil && p.walPos() != s.Before {
		err = errors.New("the write-ahead log has gone on")
	}
	if err == nil {
		err = p.publish(ctx, s.a, s.pageCount)
	}
	if err != nil {
		return fmt.Errorf("publish in %s: %w", p.opt.Path, err)
	}
	return nil
}

// Drop forgets it. Its frames are overwritten by the next ones.
func (s *Staged) Drop() { s.p.opt.Buffers.put(s.a.buf) }
