package daemon

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/config"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestRequestsOfARollbackJournal holds the requests that a transaction on two
// pages costs at synchronous=FULL (docs/journals.md). RELEASE, RELEASEDIR and
// FORGET are not counted: the kernel sends them when it likes.
func TestRequestsOfARollbackJournal(t *testing.T) {
	// SQLite gives a new journal the owner of the database when it runs as root:
	// a SETATTR, for which the kernel asks for the mode first.
	var root uint64
	if os.Geteuid() == 0 {
		root = 1
	}
	for _, c := range []struct {
		mode string
		want map[string]uint64
	}{
		{"delete", map[string]uint64{
			"WRITE": 10, "GETATTR": 3 + root, "FSYNC": 3, "SETATTR": root, "READ": 1,
			"LOOKUP": 1, "CREATE": 1, "UNLINK": 1, "OPENDIR": 1, "FSYNCDIR": 1,
		}},
		{"truncate", map[string]uint64{
			"WRITE": 10, "GETATTR": 1 + root, "FSYNC": 4, "SETATTR": 1 + root, "READ": 1,
			"OPEN": 1, "OPENDIR": 1, "FSYNCDIR": 1,
		}},
		{"persist", map[string]uint64{
			"WRITE": 12, "GETATTR": 4 + root, "FSYNC": 4, "SETATTR": 1 + root,
			"OPEN": 2, "OPENDIR": 1, "FSYNCDIR": 1,
		}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			dir := t.TempDir()
			cfg, err := config.Default(filepath.Join(dir, "mnt"), config.Source{Set: []string{"http.addr=127.0.0.1:0"}})
			if err != nil {
				t.Fatal(err)
			}
			n := startNode(t, cfg)
			app := sqlitetest.Start(t)
			conn := app.Open(filepath.Join(cfg.Fuse.Dir, "app.db"), "journal_mode="+c.mode, "synchronous=full")
			conn.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			conn.MustExec("INSERT INTO t VALUES (1, zeroblob(100))")
			const update = "UPDATE t SET v = randomblob(100)"
			conn.MustExec(update)
			const transactions = 20
			before := n.Counts()
			for range transactions {
				conn.MustExec(update)
			}
			got := map[string]uint64{}
			for op, count := range n.Counts() {
				if count -= before[op]; count > 0 {
					got[op] = count
				}
			}
			want := map[string]uint64{}
			for op, count := range c.want {
				if count > 0 {
					want[op] = transactions * count
				}
			}
			for _, op := range []string{"RELEASE", "RELEASEDIR", "FORGET", "BATCH_FORGET", "INTERRUPT"} {
				delete(got, op)
			}
			if !maps.Equal(got, want) {
				t.Errorf("requests of %d transactions: %v, want %v", transactions, got, want)
			}
			conn.Close()
			app.Exit()
			stopNode(t, n)
		})
	}
}
