package litefs

import (
	"sync/atomic"

	"github.com/litefs/litefs/internal/role"
)

// freshness is a moment of the primary's at which all it had was on its way here. This node has that when each worker has
// done what it was given until then. To look for a moment at which no worker has anything to do would be simpler, and under
// load there is none: a copy that is a millisecond old would grow old without end.
type freshness struct {
	unixMilli int64 // the primary's time
	here      int64 // when this node heard of it, by bootNow

	left atomic.Int32 // workers that are not there yet, and one while they are counted
	lost atomic.Bool  // one of them threw away what it was given: left stays above zero
	done atomic.Bool  // the store knows of it
}

// heardFresh is called with the time of a moment at which the primary had everything on its way, and returns what the
// caller is to call there with, if any. Until this node knows whether it has what was there at the last one, that comes
// first. f.mu is held.
func (f *upstream) heardFresh(unixMilli int64) *freshness {
	if m := f.fresh; m != nil && !m.done.Load() && !m.lost.Load() {
		return nil
	}
	m := &freshness{unixMilli: unixMilli, here: int64(bootNow())}
	m.left.Store(1)
	f.fresh = m
	for _, w := range f.workers {
		w.expect(m)
	}
	return m
}

// there is called by each that m waits for. f.mu is not held: the role loop may be busy.
func (f *upstream) there(m *freshness) {
	if m.left.Add(-1) > 0 {
		return
	}
	s := f.store
	s.syncedHere.Store(m.here)
	s.syncedAt.Store(m.unixMilli)
	m.done.Store(true)
	s.syncOnce.Do(func() { close(s.synced) })
	if s.roles != nil && f.caught.CompareAndSwap(false, true) {
		s.roles.send(role.CaughtUp{})
	}
}

// expect has m wait until the worker has done what it was given so far.
func (w *worker) expect(m *freshness) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.discard || w.off:
		m.left.Add(1)
		m.lost.Store(true)
	case w.busy || len(w.pieces) > 0:
		m.left.Add(1)
		w.fresh, w.freshAt = m, w.given
	}
}

// reached returns what waits for the worker no longer, when everything that was taken from the queue is done. w.mu is held.
func (w *worker) reached() *freshness {
	m := w.fresh
	if m == nil || w.given-uint64(len(w.pieces)) < w.freshAt || w.waitsToBeShown() {
		return nil
	}
	w.fresh = nil
	return m
}

// loseFresh is called when what was given is thrown away. w.mu is held.
func (w *worker) loseFresh() {
	if w.fresh != nil {
		w.fresh.lost.Store(true)
		w.fresh = nil
	}
}
