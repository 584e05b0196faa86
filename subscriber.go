package litefs

import "sync"

// Subscriber subscribes to changes to databases in the store.
//
// It implements a set of "dirty" databases instead of a channel of all events
// as clients can be slow and we don't want to cause channels to back up. It
// is the responsibility of the caller to determine the state changes which is
// usually just checking the position of the client versus the store's
// database.
type Subscriber struct {
	store *Store

	mu    sync.Mutex
	dirty map[uint32]struct{} // ids marked since the last DirtySet

	// One value is pending whenever dirty is not empty, and it may be pending when it is empty: whoever
	// waits on it never misses a mark.
	notify chan struct{}
}

// newSubscriber returns a subscriber with an empty set. The store has yet to remember it.
func newSubscriber(store *Store) *Subscriber {
	return &Subscriber{
		store:  store,
		dirty:  make(map[uint32]struct{}),
		notify: make(chan struct{}, 1),
	}
}

// Close removes the subscriber from the store.
func (s *Subscriber) Close() error {
	s.store.Unsubscribe(s)
	return nil
}

// NotifyCh returns a channel that receives a value when the dirty set, the
// role of the node or its primary has changed. It is never closed. Several
// changes may come as one value.
func (s *Subscriber) NotifyCh() <-chan struct{} { return s.notify }

// MarkDirty marks a database ID as dirty. It never waits.
func (s *Subscriber) MarkDirty(dbID uint32) {
	s.mu.Lock()
	s.dirty[dbID] = struct{}{}
	s.mu.Unlock()
	s.wake()
}

// wake makes NotifyCh ready: a database, the role or the primary has changed. It never waits.
func (s *Subscriber) wake() {
	select {
	case s.notify <- struct{}{}:
	default: // a value is pending already; its receiver will see this change too
	}
}

// DirtySet returns a set of database IDs that have changed since the last call
// to DirtySet(). This call clears the set.
func (s *Subscriber) DirtySet() map[uint32]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.dirty
	s.dirty = make(map[uint32]struct{})
	return set
}
