package litefs

import "errors"

// Settle captures what applications have committed in WAL mode before the call,
// so that Pos counts it. A commit with a rollback journal is captured before it
// returns to the application. On a replica there is nothing to capture: what is
// postponed there (docs/promises.md) is not any longer.
func (db *DB) Settle() error {
	if db.store.Role() != RolePrimary {
		db.store.Hurry(db.id)
		return nil
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closing.Load() {
		return errors.New("the database is being closed")
	}
	return db.captureWAL(false)
}

// Hurry is told that somebody waits for a database: on a replica nothing of it is postponed, once.
func (s *Store) Hurry(id uint32) {
	f := s.upstream.Load()
	if f == nil {
		return
	}
	if w := f.worker(id); w != nil {
		w.hurried()
	}
}
