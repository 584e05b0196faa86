package litefs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestScrubInterval: a page that the disk has changed is found without anybody asking.
func TestScrubInterval(t *testing.T) {
	n := openNode(t, filepath.Join(t.TempDir(), "data"), func(s *Store) { s.ScrubInterval = 20 * time.Millisecond })
	c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal", "synchronous=off")
	c.MustExec(createT)
	n.adopt("app.db")
	n.rows("app.db", c, 50)
	c.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)")
	waitUntil(t, "a scrub of a whole database", func() bool { return n.store.Stats().Scrubs.Load() > 0 })
	if got := n.store.Stats().ScrubFaults.Load(); got != 0 {
		t.Fatalf("%d faults of a database that has none", got)
	}

	n.damage("app.db")
	waitUntil(t, "the damage", func() bool { return n.store.Stats().ScrubFaults.Load() > 0 })
}

// damage changes a byte of the second page in the file, as a disk does.
func (n *node) damage(name string) {
	n.t.Helper()
	f, err := os.OpenFile(filepath.Join(n.store.FilesDir(), name), os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 4096+100); err != nil {
		n.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		n.t.Fatal(err)
	}
}

// TestStrictVerify: pages are compared after transactions, and the next transaction after the disk has changed
// one finds it.
func TestStrictVerify(t *testing.T) {
	n := openNode(t, filepath.Join(t.TempDir(), "data"), func(s *Store) { s.StrictVerify = true })
	c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal", "synchronous=off")
	c.MustExec(createT)
	n.adopt("app.db")
	n.rows("app.db", c, 50)
	c.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)")
	waitUntil(t, "the verification of a transaction", func() bool { return n.store.Stats().Scrubs.Load() > 0 })
	if got := n.store.Stats().ScrubFaults.Load(); got != 0 {
		t.Fatalf("%d faults of a database that has none", got)
	}
	n.damage("app.db")
	c.MustExec("CREATE TABLE another (a)")
	waitUntil(t, "the damage", func() bool { return n.store.Stats().ScrubFaults.Load() > 0 })
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: nothing", what)
		}
		time.Sleep(time.Millisecond)
	}
}
