package ship

import (
	"context"
	"sync/atomic"
	"time"
)

// A commit that waits for the archives (durability level archive) asks with Want. Its database is visited at once,
// beside those that wait for their turn, and its requests are counted but not held back: a bound on requests that made
// commits wait would be a bound on commits.

// waiter is a commit that waits for every target.
type waiter struct {
	dbID uint32
	txid uint64
	left atomic.Int32 // targets that lack it
	done chan struct{}
}

func (w *waiter) has() {
	if w.left.Add(-1) == 0 {
		close(w.done)
	}
}

// Want is litefs.Archive's.
func (s *Shipper) Want(dbID uint32, txid uint64) (done <-chan struct{}, stop func()) {
	w := &waiter{dbID: dbID, txid: txid, done: make(chan struct{})}
	w.left.Store(int32(len(s.targets)))
	for _, t := range s.targets {
		t.want(w)
	}
	return w.done, func() {
		for _, t := range s.targets {
			t.unwant(w)
		}
	}
}

func (t *target) want(w *waiter) {
	epoch := t.opt.Source.Epoch()
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.mu.chains[w.dbID]; c != nil && c.epoch == epoch && c.tailTXID >= w.txid {
		w.has()
		return
	}
	t.mu.waiters[w] = struct{}{}
	t.look()
}

func (t *target) unwant(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.mu.waiters, w)
}

// look has run look at the databases before its time.
func (t *target) look() {
	select {
	case t.wake <- struct{}{}:
	default: // it is about to
	}
}

// wanted returns up to where commits wait for a database; 0: none does. mu is held.
func (t *target) wanted(dbID uint32) (txid uint64) {
	for w := range t.mu.waiters {
		if w.dbID == dbID {
			txid = max(txid, w.txid)
		}
	}
	return txid
}

// answer tells the commits that wait for a database up to where the target has it. mu is held.
func (t *target) answer(dbID uint32, txid uint64) {
	for w := range t.mu.waiters {
		if w.dbID == dbID && w.txid <= txid {
			delete(t.mu.waiters, w)
			w.has()
		}
	}
}

// retryWanted is how often a target that fails is tried while a commit waits for it.
const retryWanted = 500 * time.Millisecond

// nextLook is when run looks again if nobody wakes it.
func (t *target) nextLook() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.mu.waiters) > 0 {
		return min(retryWanted, t.opt.Interval)
	}
	return t.opt.Interval
}

// urgentKey marks the context of requests that a commit waits for.
type urgentKey struct{}

func urgent(ctx context.Context) context.Context { return context.WithValue(ctx, urgentKey{}, true) }

// patient is for what no commit waits for.
func patient(ctx context.Context) context.Context { return context.WithValue(ctx, urgentKey{}, false) }

func isUrgent(ctx context.Context) bool {
	is, _ := ctx.Value(urgentKey{}).(bool)
	return is
}
