package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/leasehttp"
	"github.com/litefs/litefs/internal/leaseterm"
)

// Lease is a key locked by a session. It is safe for concurrent use.
type Lease struct {
	leaser  *Leaser
	term    *leaseterm.Term
	session string
	token   uint64 // the key's ModifyIndex of the acquisition

	// renewing is held by whoever writes to the key: two who write at once would take turns in
	// taking each other's renewal back.
	renewing chan struct{}
	renewals uint64
}

var _ litefs.FencedLease = (*Lease)(nil)

// Token is the index of Consul's log at which the key was locked. The index counts every write to the
// datacenter, so that a later lease has a greater one, also if the key was deleted in between.
func (l *Lease) Token() uint64 { return l.token }

// TTL is how long the lease lasts after a renewal.
func (l *Lease) TTL() time.Duration { return l.term.TTL() }

// RenewedAt is the moment before the last renewal that succeeded was sent.
func (l *Lease) RenewedAt() time.Time { return l.term.RenewedAt() }

// Remaining is how much longer no other node can have the lease; 0 or less once it has ended.
func (l *Lease) Remaining() time.Duration { return l.term.Remaining() }

// Renew resets the TTL: of the session, by which Consul counts, and of the key, by which candidates do.
// It returns litefs.ErrLeaseExpired once the lease is another's, or nobody's. After any other error the
// lease is as it was and may be renewed again.
func (l *Lease) Renew(ctx context.Context) error {
	unlock, err := l.alone(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// Both calls together in the time of one: a renewal that hangs leaves time for another one.
	ctx, cancel := context.WithTimeoutCause(ctx, l.leaser.api.Timeout(), leasehttp.ErrNoAnswer)
	defer cancel()
	sent := l.term.Mark()
	_, err = l.leaser.api.Do(ctx, leasehttp.Request{
		Method: http.MethodPut, Path: "/v1/session/renew/" + l.session, Header: l.leaser.header(),
	}, nil)
	if leasehttp.IsStatus(err, http.StatusNotFound) {
		return l.expire()
	}
	if err != nil {
		return err
	}
	l.renewals++
	if err := l.write(ctx, kvOp{Verb: "set", Key: l.leaser.key, Value: l.value()}); err != nil {
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
	unlock, err := l.alone(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return l.write(ctx, kvOp{Verb: "set", Key: l.leaser.beside(recordName), Value: value})
}

// alone waits until nobody else writes under this lease.
func (l *Lease) alone(ctx context.Context) (unlock func(), err error) {
	select {
	case l.renewing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l.term.Ended() {
		<-l.renewing
		return nil, litefs.ErrLeaseExpired
	}
	return func() { <-l.renewing }, nil
}

// write does op if this session holds the key. A lock would be wrong here: it takes a key that was
// freed, and with it goes on under a token that another node's may have passed.
func (l *Lease) write(ctx context.Context, op kvOp) error {
	_, err := l.leaser.transact(ctx, l.check(), op)
	var rollback *rollbackError
	if errors.As(err, &rollback) && !rollback.denied() {
		return l.expire()
	}
	return err
}

func (l *Lease) check() kvOp {
	return kvOp{Verb: "check-session", Key: l.leaser.key, Session: l.session}
}

// value is what the key says while this lease holds.
func (l *Lease) value() []byte {
	o := l.leaser.opt
	// A struct of strings and a number has no error.
	b, _ := json.Marshal(holder{
		Hostname: o.Hostname, URL: o.AdvertiseURL,
		TTL: o.TTL.String(), LockDelay: o.LockDelay.String(), Renewals: l.renewals,
	})
	return b
}

func (l *Lease) expire() error {
	l.end()
	return litefs.ErrLeaseExpired
}

// end reports whether the lease had not ended before.
func (l *Lease) end() bool {
	first := l.term.End()
	l.leaser.slot.Leave(l, l.session)
	return first
}

// Close gives the lease back: another node can have it at once, without a lock-delay. It must not be
// called before the last write under the lease has ended. A lease that is lost is not touched.
func (l *Lease) Close() error {
	if !l.end() {
		return nil
	}
	ctx := context.Background() // each call has its time-out
	// Removing the key first: the end of a session that holds a key starts the lock-delay.
	_, err := l.leaser.transact(ctx, l.check(), kvOp{Verb: "delete", Key: l.leaser.key})
	var rollback *rollbackError
	if errors.As(err, &rollback) && !rollback.denied() {
		err = nil
	}
	if destroyed := l.leaser.destroySession(ctx, l.session); destroyed != nil && err != nil {
		return fmt.Errorf("give back the lease, which now ends by itself within %v: %w", l.leaser.opt.TTL+l.leaser.opt.LockDelay, err)
	}
	return nil
}
