package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/leasehttp"
	"github.com/litefs/litefs/internal/leaseterm"
)

// Lease is an etcd lease with the key bound to it. It is safe for concurrent use.
type Lease struct {
	leaser *Leaser
	term   *leaseterm.Term
	id     int64  // of the etcd lease
	token  uint64 // the revision at which the key was written

	renewing chan struct{} // held by whoever renews
}

var _ litefs.FencedLease = (*Lease)(nil)

// Token is the revision of etcd at which the key was written, which each lease does once. The revision
// counts every change of the store, so that a later lease has a greater one.
func (l *Lease) Token() uint64 { return l.token }

// TTL is how long the lease lasts after a renewal.
func (l *Lease) TTL() time.Duration { return l.term.TTL() }

// RenewedAt is the moment before the last renewal that succeeded was sent.
func (l *Lease) RenewedAt() time.Time { return l.term.RenewedAt() }

// Remaining is how much longer no other node can have the lease; 0 or less once it has ended.
func (l *Lease) Remaining() time.Duration { return l.term.Remaining() }

// Renew resets the TTL and makes sure that the key is still there: an operator can remove it, and the
// etcd lease alone would live on. It returns litefs.ErrLeaseExpired once the lease is another's, or
// nobody's. After any other error the lease is as it was and may be renewed again.
func (l *Lease) Renew(ctx context.Context) error {
	// Both calls together in the time of one: a renewal that hangs leaves time for another one.
	ctx, cancel := context.WithTimeoutCause(ctx, l.leaser.api.client.Timeout(), leasehttp.ErrNoAnswer)
	defer cancel()
	select {
	case l.renewing <- struct{}{}:
		defer func() { <-l.renewing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if l.term.Ended() {
		return litefs.ErrLeaseExpired
	}
	sent := l.term.Mark()
	alive, err := l.leaser.api.keepAlive(ctx, l.id)
	if err != nil {
		return err
	}
	if !alive {
		return l.expire()
	}
	if err := l.ifHeld(ctx); err != nil {
		return err
	}
	l.term.Renewed(sent)
	return nil
}

// SetRecord replaces the record if this lease still holds; litefs.ErrLeaseExpired if it does not.
func (l *Lease) SetRecord(ctx context.Context, r litefs.Record) error {
	r.Token = l.token
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if l.term.Ended() {
		return litefs.ErrLeaseExpired
	}
	return l.ifHeld(ctx, put(l.leaser.beside(recordName), value, 0))
}

// ifHeld does ops if the key is as this lease has written it.
func (l *Lease) ifHeld(ctx context.Context, ops ...op) error {
	done, _, _, err := l.leaser.api.txn(ctx, txnRequest{
		Compare: []compare{writtenAt(l.leaser.key, l.token)},
		Success: ops,
	})
	if err == nil && !done {
		return l.expire()
	}
	return err
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
	// The key goes with the lease that it is bound to, and no other's does.
	if err := l.leaser.api.revoke(context.Background(), l.id); err != nil { // the call has its time-out
		return fmt.Errorf("give back the lease, which now ends by itself within %v: %w", l.leaser.opt.TTL, err)
	}
	return nil
}
