package cas

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/leaseterm"
)

// Lease is a lock that has this lease's id. It is safe for concurrent use.
type Lease struct {
	leaser *Leaser
	term   *leaseterm.Term
	id     string
	token  uint64

	// renewing is held by whoever writes under this lease, and guards what is below.
	renewing chan struct{}
	version  string // of the lock, as far as is known
	renewals uint64
	state    state // as this lease has written it last
}

var _ litefs.FencedLease = (*Lease)(nil)

// Token counts leases, or is the number of the write that took this one: see Options.Numbered.
func (l *Lease) Token() uint64 { return l.token }

// TTL is how long the lease lasts after a renewal.
func (l *Lease) TTL() time.Duration { return l.term.TTL() }

// RenewedAt is the moment before the last renewal that succeeded was sent.
func (l *Lease) RenewedAt() time.Time { return l.term.RenewedAt() }

// Remaining is how much longer no other node can have the lease; 0 or less once it has ended.
func (l *Lease) Remaining() time.Duration { return l.term.Remaining() }

// take writes this lease into the lock, which has l.version. It returns ErrConflict if another node was
// faster.
func (l *Lease) take(ctx context.Context) error {
	version, err := l.leaser.put(ctx, LockName, l.lock().Encode(), l.version)
	if errors.Is(err, ErrConflict) {
		// A client that tries again by itself may have met its own write.
		k, at, lookErr := l.leaser.lock(ctx)
		if lookErr != nil {
			return lookErr
		}
		if k.ID == l.id {
			version, err = at, nil
		}
	}
	if err != nil {
		return err
	}
	l.version = version
	l.token, err = l.leaser.tokenOf(l.token, version)
	return err
}

// raiseFence makes the state this lease's; s is what was there before the lease was taken. It follows the
// lock and never goes first: then the fence would be that of a node which did not get the lease, and
// would keep out the one that has it.
func (l *Lease) raiseFence(ctx context.Context, s state) (err error) {
	for {
		if s.ID == l.id {
			l.state = s
			return nil
		}
		if s.exists && s.Fence >= l.token {
			return litefs.ErrPrimaryExists // somebody has taken the lease since
		}
		s.Fence, s.ID, s.Writes = l.token, l.id, 0
		l.state, err = l.leaser.putState(ctx, s)
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if s, err = l.leaser.state(ctx); err != nil {
			return err
		}
	}
}

// Renew resets the TTL. It returns litefs.ErrLeaseExpired once the lease is another's, or nobody's. After
// any other error the lease is as it was and may be renewed again.
func (l *Lease) Renew(ctx context.Context) error {
	// All calls together in the time of one: a renewal that hangs leaves time for another one.
	ctx, cancel := context.WithTimeoutCause(ctx, l.leaser.timeout, errNoAnswer)
	defer cancel()
	unlock, err := l.alone(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	sent := l.term.Mark()
	l.renewals++
	if err := l.write(ctx, l.lock()); err != nil {
		return err
	}
	l.term.Renewed(sent)
	return nil
}

// SetRecord replaces the record if this lease still holds; litefs.ErrLeaseExpired if it does not.
func (l *Lease) SetRecord(ctx context.Context, r litefs.Record) error {
	r.Token = l.token
	unlock, err := l.alone(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// This look finds a lease that was taken away by hand. Another node can still take the lease after it:
	// then its fence is in the way of the write, or the write came before that node was told that it has
	// the lease, and is what it reads.
	k, _, err := l.leaser.lock(ctx)
	if err != nil {
		return err
	}
	if k.ID != l.id {
		return l.expire()
	}
	s := l.state
	for {
		s.Record = &r
		written, err := l.leaser.putState(ctx, s)
		if err == nil {
			l.state = written
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if s, err = l.leaser.state(ctx); err != nil {
			return err
		}
		if s.exists && s.ID != l.id {
			return l.expire()
		}
		s.Fence, s.ID = l.token, l.id // it may have been removed by hand
	}
}

// alone waits until nobody else writes under this lease.
func (l *Lease) alone(ctx context.Context) (unlock func(), err error) {
	select {
	case l.renewing <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l.term.Ended() {
		<-l.renewing
		return nil, litefs.ErrLeaseExpired
	}
	return func() { <-l.renewing }, nil
}

// write replaces the lock if it is this lease's.
func (l *Lease) write(ctx context.Context, k Lock) error {
	version, err := l.leaser.put(ctx, LockName, k.Encode(), l.version)
	if errors.Is(err, ErrConflict) {
		// Another's, or a write of ours: one whose answer was lost, or this one, tried again by a client.
		found, at, lookErr := l.leaser.lock(ctx)
		if lookErr != nil {
			return lookErr
		}
		if found.ID != l.id {
			return l.expire()
		}
		if version, err = at, nil; found.Renewals != k.Renewals {
			version, err = l.leaser.put(ctx, LockName, k.Encode(), at)
		}
	}
	if errors.Is(err, ErrConflict) {
		return fmt.Errorf("write %v: %w", l.leaser, err) // a late write of ours came in between: the next one is told
	}
	if err != nil {
		return err
	}
	l.version = version
	return nil
}

// lock is the document while this lease holds.
func (l *Lease) lock() Lock {
	o := l.leaser.opt
	k := Lock{
		ID: l.id, Token: l.token, Hostname: o.Hostname, URL: o.AdvertiseURL,
		TTL: o.TTL.String(), LockDelay: o.LockDelay.String(), Renewals: l.renewals,
	}
	if o.Numbered {
		k.Token = 0 // not known before it is written
	}
	return k
}

func (l *Lease) expire() error {
	l.end()
	return litefs.ErrLeaseExpired
}

// end reports whether the lease had not ended before.
func (l *Lease) end() bool {
	first := l.term.End()
	l.leaser.slot.Leave(l, l.id)
	return first
}

// Close gives the lease back: another node can have it at once. It must not be called before the last
// write under the lease has ended. A lease that is lost is not touched.
func (l *Lease) Close() error {
	if !l.end() {
		return nil
	}
	l.renewing <- struct{}{} // whoever has it makes calls that have their time-outs
	defer func() { <-l.renewing }()
	ctx := context.Background() // each call has its time-out
	_, err := l.leaser.put(ctx, LockName, l.vacant().Encode(), l.version)
	if errors.Is(err, ErrConflict) {
		err = l.release(ctx)
	}
	if err != nil {
		o := l.leaser.opt
		return fmt.Errorf("give back the lease, which now ends by itself within %v: %w", o.TTL+o.LockDelay, err)
	}
	return nil
}

// release makes the lock nobody's if it is this lease's.
func (l *Lease) release(ctx context.Context) error {
	for {
		k, version, err := l.leaser.lock(ctx)
		if err != nil || k.ID != l.id {
			return err
		}
		_, err = l.leaser.put(ctx, LockName, l.vacant().Encode(), version)
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// vacant is the document after this lease was given back.
func (l *Lease) vacant() Lock { return Lock{Token: l.lock().Token} }
