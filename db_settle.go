package litefs

import "errors"

// Settle captures what applications have committed in WAL mode before the call,
// so that Pos counts it. A commit with a rollback journal is captured before it
// returns to the application. On a replica there is nothing to capture.
func (db *DB) Settle() error {
	if db.store.Role() != RolePrimary {
		return nil
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closing.Load() {
		return errors.New("the database is being closed")
	}
	return db.captureWAL(false)
}
