package litefs

import (
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestCaptureBeforeTheIndexIsOpen: without passthrough the wal-index of the
// applications can only be read through the mount. A checkpoint may ask for a
// capture before the daemon has it open; what the backing file says then is
// old, and must not hide a commit.
func TestCaptureBeforeTheIndexIsOpen(t *testing.T) {
	m := mountNode(t, filepath.Join(t.TempDir(), "data"), true)
	r := newReader(t)
	c := sqlitetest.Open(t, m.app("app.db"), "journal_mode=wal")
	c.MustExec(createT)
	c.MustExec("INSERT INTO t(b) VALUES (1)")
	c.Close()
	c = sqlitetest.Open(t, m.app("app.db"))
	db := m.db("app.db")
	before := db.TXID()
	db.mu.Lock() // the capture loop waits for it before it opens the index
	c.MustExec("INSERT INTO t(b) VALUES (2)")
	var err error
	if db.wal != nil && db.wal.shm != nil {
		err = db.closeIndex(db.wal) // it was quicker
	}
	if err == nil {
		err = db.captureWAL(true)
	}
	db.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if got := db.TXID(); got != before+1 {
		t.Errorf("TXID %d, want %d", got, before+1)
	}
	m.mustAgree(r, "app.db")
}
