package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// A node goes on with the data directory of a real LiteFS 0.5.14 that was killed: a hot journal is played
// back, a write-ahead log is part of its database, a database that was dropped stays dropped. A follower and
// an archive get all of them before anybody has opened one.
func TestAdopt(t *testing.T) {
	archive := archiveDir(t)
	n := newNode(t)
	n.args = append(archive.set, "-set", "backup.interval=100ms", "-set", "backup.max-requests=1000")
	if err := os.Mkdir(n.cfg.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"tar", "-C", n.cfg.Data, "-xzf", "../adopt/testdata/litefs-0.5.14.tar.gz"},
		{binary(t), "adopt", n.cfg.Data},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	n.start()
	f := startNode(t, follows(n))
	for _, name := range []string{"del.db", "persist.db", "wal.db"} {
		eventually(t, name+" is on record", func() (bool, string) {
			pos, err := n.pos(name)
			return err == nil && pos != "none", fmt.Sprint(pos, err)
		})
		caughtUp(n, f, name)
		m := archive.archived(f, name) // opens the follower's
		archive.restored(m, name)
	}
	for name, want := range map[string]int64{"del.db": 2, "persist.db": 0, "wal.db": 2} {
		sqlitetest.CheckIntegrity(t, n.path(name))
		db := sqlitetest.Open(t, n.path(name))
		if got := db.MustInt("SELECT count(*) FROM t"); got != want {
			t.Errorf("%s: %d rows, want %d", name, got, want)
		}
		db.MustExec("INSERT INTO t VALUES ('new')")
		eventually(t, "the follower has "+name, func() (bool, string) {
			if _, err := os.Stat(f.path(name)); err != nil {
				return false, err.Error()
			}
			rows, err := sqlitetest.TryCLI(f.path(name), "SELECT count(*) FROM t WHERE a = 'new'")
			return err == nil && rows == "1\n", rows
		})
		db.Close()
	}
	if _, err := os.Stat(n.path("gone.db")); !os.IsNotExist(err) {
		t.Errorf("a database that was dropped is back: %v", err)
	}
	if out, err := exec.Command(binary(t), "adopt", "-clean", n.cfg.Data).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(n.cfg.Data, "litefs-0.5")); !os.IsNotExist(err) {
		t.Errorf("-clean leaves it: %v", err)
	}
	f.stop()
	n.stop()
	n.verified()
	f.verified()
}
