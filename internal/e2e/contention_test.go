package e2e

import (
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)

// busyLoops keeps every processor busy, and one more, until the test ends.
func busyLoops(t *testing.T, n int) {
	t.Helper()
	for range n {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait() // killed, as its status says
		})
	}
}

// contention runs writer and reader processes on one database while busy loops take their time.
func contention(t *testing.T, d time.Duration, options ...option) {
	const writers, readers, loops = 3, 2, 3
	n := startNode(t, options...)
	first := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal")
	first.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB, w INTEGER)")
	first.Close()
	busyLoops(t, loops)

	var wg sync.WaitGroup
	rounds := make([]sqlapp.Repeated, writers)
	for i := range writers {
		c := openPatient(sqlitetest.Start(t), n.path("app.db"), "synchronous=normal", "wal_autocheckpoint=100")
		wg.Go(func() {
			var err error
			// Two rows a transaction: a reader that sees an odd number has seen half of one.
			rounds[i], err = c.Repeat([]sqlapp.Step{
				{SQL: "BEGIN IMMEDIATE"}, {SQL: insert(200).SQL, Times: 2}, {SQL: "COMMIT"},
			}, 0, d)
			if err != nil {
				t.Errorf("writer %d after %d transactions: %v", i, rounds[i].Rounds, err)
			}
			c.Close()
		})
	}
	for i := range readers {
		c := openPatient(sqlitetest.Start(t), n.path("app.db"))
		wg.Go(func() {
			for end := time.Now().Add(d); time.Now().Before(end); {
				rows, err := c.Query("SELECT count(*), count(DISTINCT id) FROM t")
				if err != nil {
					t.Errorf("reader %d: %v", i, err)
					return
				}
				if rows[0][0].(int64)%2 != 0 || rows[0][0] != rows[0][1] {
					t.Errorf("reader %d sees half a transaction: %v", i, rows[0])
				}
			}
			c.Close()
		})
	}
	wg.Wait()
	want := int64(0)
	for _, r := range rounds {
		want += 2 * int64(r.Rounds)
	}
	last := sqlitetest.Open(t, n.path("app.db"))
	if got := last.MustInt("SELECT count(*) FROM t"); got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
	last.Close()
	n.stop()
	db := n.verified()["app.db"]
	if db == nil || int64(db.Max) < want/2 {
		t.Errorf("%+v, want at least %d transactions", db, want/2)
	}
	t.Logf("%d transactions", want/2)
}

func TestWritersAndReadersUnderContention(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { contention(t, 2*time.Second) })
	t.Run("cached", func(t *testing.T) { contention(t, 2*time.Second, cached) })
}

// One connection with no busy time-out, alone on its database, is never told that it is locked: the
// daemon takes no lock, whatever the connection does.
func TestTheDaemonMakesNobodyBusy(t *testing.T) {
	for _, mode := range []struct {
		name    string
		options []option
	}{{"passthrough", nil}, {"cached", []option{cached}}} {
		t.Run(mode.name, func(t *testing.T) {
			n := startNode(t, mode.options...)
			c := sqlitetest.Open(t, n.path("app.db"), "journal_mode=wal", "synchronous=normal", "wal_autocheckpoint=20")
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			for _, kind := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
				steps := []sqlapp.Step{{SQL: insert(500).SQL, Times: 20}, {SQL: "PRAGMA wal_checkpoint(" + kind + ")"}}
				if done, err := c.Repeat(steps, 10, 0); err != nil {
					t.Errorf("%s, after %d rounds: %v", kind, done.Rounds, err)
				}
				if rows := c.MustQuery("PRAGMA wal_checkpoint(" + kind + ")"); rows[0][0] != int64(0) {
					t.Errorf("%s checkpoint was busy: %v", kind, rows)
				}
			}
			for _, sql := range []string{"PRAGMA locking_mode=exclusive", insert(1).SQL, "PRAGMA locking_mode=normal", insert(1).SQL, "VACUUM", insert(1).SQL} {
				if _, err := c.Query(sql); err != nil {
					t.Errorf("%s: %v", sql, err)
				}
			}
			c.Close()
			n.stop()
			n.verified()
		})
	}
}
