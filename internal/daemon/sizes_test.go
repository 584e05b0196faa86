package daemon

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestCostIsThatOfTheTransaction: the same transactions hash the same number of
// pages and make the same requests in a small database and in a large one, and
// opening the large one after a clean stop reads none of its pages. With
// LITEFS_SOAK the large one has 2 GB and the time to open it is logged.
func TestCostIsThatOfTheTransaction(t *testing.T) {
	large := 64 << 20
	if os.Getenv("LITEFS_SOAK") != "" {
		large = 2 << 30
	}
	small := costOfCommits(t, 1<<20)
	big := costOfCommits(t, large)
	if fmt.Sprint(small) != fmt.Sprint(big) {
		t.Errorf("in a database of %d bytes: %v, of 1 MiB: %v", large, big, small)
	}
}

type cost struct {
	pages    uint64
	requests map[string]uint64
}

// costOfCommits makes a database of about size bytes, stops the node, and
// returns what 20 updates of one row each cost after the next start.
func costOfCommits(t *testing.T, size int) cost {
	t.Helper()
	dir := t.TempDir()
	cfg, err := config.Default(filepath.Join(dir, "mnt"), config.Source{Set: []string{"http.addr=127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, cfg)
	app := sqlitetest.Start(t)
	c := app.Open(filepath.Join(cfg.Fuse.Dir, "app.db"), "journal_mode=wal", "synchronous=normal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	rows := 100_000 * max(1, size>>30)
	c.MustExec(fmt.Sprintf("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO t SELECT i, zeroblob(%d) FROM n", rows, size/rows))
	c.Close()
	stopNode(t, n)

	begin := time.Now()
	n = startNode(t, cfg)
	t.Logf("%d bytes: ready after %v, %d pages hashed", size, time.Since(begin), n.Store().Stats().PageHashes.Load())
	if hashed := n.Store().Stats().PageHashes.Load(); hashed != 0 {
		t.Errorf("%d pages hashed to open a database of %d bytes that was stopped cleanly, want none", hashed, size)
	}
	c = app.Open(filepath.Join(cfg.Fuse.Dir, "app.db"), "synchronous=full", "wal_autocheckpoint=0")
	update := []sqlapp.Step{{SQL: "UPDATE t SET v = randomblob(100) WHERE id = 77"}}
	commit(t, n, c, update)
	pages, requests := n.Store().Stats().PageHashes.Load(), n.Counts()
	for range 20 {
		commit(t, n, c, update)
	}
	got := cost{pages: n.Store().Stats().PageHashes.Load() - pages, requests: map[string]uint64{}}
	for op, count := range n.Counts() {
		if count -= requests[op]; count > 0 && op != "FORGET" && op != "BATCH_FORGET" {
			got.requests[op] = count
		}
	}
	if want := map[string]uint64{"FSYNC": 20}; !maps.Equal(got.requests, want) {
		t.Errorf("requests of 20 transactions at FULL: %v, want %v", got.requests, want)
	}
	c.Close()
	app.Exit()
	stopNode(t, n)
	return got
}

// startNode starts a node in this process.
func startNode(t testing.TB, cfg *config.Config) *Node {
	t.Helper()
	if err := os.MkdirAll(cfg.Fuse.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n, err := Start(t.Context(), cfg, logTo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() { // else the test has stopped it
			stopNode(t, n)
		}
	})
	return n
}

func stopNode(t testing.TB, n *Node) {
	t.Helper()
	if err := n.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// commit runs a transaction and waits until it is in the log.
func commit(t *testing.T, n *Node, c *sqlitetest.Conn, steps []sqlapp.Step) {
	t.Helper()
	db := n.Store().DBByName("app.db")
	before := db.TXID()
	if _, err := c.Repeat(steps, 1, patience); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); db.TXID() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a commit was not captured")
		}
	}
}
