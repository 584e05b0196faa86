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

	f, err := os.OpenFile(filepath.Join(n.store.FilesDir(), "app.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 4096+100); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
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
