package peer

import (
	"context"
	"errors"
	"fmt"
)

// Hold keeps local writers from a database and nothing else: they get SQLITE_BUSY as beside a Peer, readers go on, and
// no byte of the database or of its write-ahead log changes. What a Hold does not reach is a connection in
// locking_mode=EXCLUSIVE, which keeps its locks between transactions: HoldWriters then waits until its context ends.
type Hold struct{ p *Peer }

// HoldWriters takes the locks of a Peer as soon as the transaction under way has ended. A database without a write-ahead
// log does not get one. Errors: those of Open.
func HoldWriters(ctx context.Context, opt Options) (*Hold, error) {
	opt.Eager, opt.locksOnly = true, true
	opt.ensureDefaults()
	p := &Peer{opt: opt}
	if err := p.open(ctx); err != nil {
		return nil, fmt.Errorf("hold the writers of %s: %w", opt.Path, errors.Join(err, p.release()))
	}
	return &Hold{p}, nil
}

// Release lets writers go on. The files stay as they are.
func (h *Hold) Release() error { return h.p.release() }
