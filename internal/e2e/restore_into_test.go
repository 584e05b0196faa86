package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestRestoreInto: a moment of the archive becomes the content of a database of the running cluster, of one that is
// there and of a new one; connections stay open, the replica follows, and the archive's history goes on. A replica
// refuses, and names the primary.
func TestRestoreInto(t *testing.T) {
	place := archiveDir(t)
	keeps := func(c *childnode.Config) { c.Backup = append(place.section(), "interval: 50ms", "max-requests: 1000") }
	primary := startNode(t, keeps)
	replica := startNode(t, keeps, follows(primary))
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=WAL")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
	c.MustExec("INSERT INTO t(v) VALUES ('a'), ('b')")
	settle(c)
	first := place.archived(primary, "app.db")
	c.MustExec("DELETE FROM t")
	c.MustExec("INSERT INTO t(v) VALUES ('wrong')")
	settle(c)
	second := place.archived(primary, "app.db")
	into := func(n *node, database string, flags ...string) (string, int) {
		return n.cli(append([]string{"restore", "-config", n.configPath(), "-name", "app.db", "-into", database}, flags...)...)
	}
	is := func(database, want string) {
		t.Helper()
		caughtUp(primary, replica, database)
		for _, n := range []*node{primary, replica} {
			if got := openPatient(sqlitetest.Start(t), n.path(database)).MustText("SELECT coalesce(group_concat(v), '') FROM t"); got != want {
				t.Errorf("%s of %s has %q, want %q", database, n.dir, got, want)
			}
		}
	}
	must := func(out string, code int) {
		t.Helper()
		if code != 0 || !strings.Contains(out, "is the content of") {
			t.Fatalf("exit code %d: %s", code, out)
		}
	}
	txid, _, _ := strings.Cut(first.pos, "/")
	must(into(primary, "app.db", "-txid", txid))
	is("app.db", "a,b")
	if got := c.MustText("SELECT group_concat(v) FROM t"); got != "a,b" {
		t.Errorf("a connection that was open sees %q", got)
	}
	must(into(primary, "app.db", "-timestamp", second.at.UTC().Format(time.RFC3339Nano)))
	is("app.db", "wrong")
	must(into(primary, "copy.db", "-txid", txid, "-integrity-check", "full"))
	is("copy.db", "a,b")
	c.MustExec("INSERT INTO t(v) VALUES ('after')")
	settle(c)
	place.archived(primary, "app.db")
	must(into(primary, "app.db")) // the newest
	is("app.db", "wrong,after")
	place.archived(primary, "app.db")
	if all, err := place.histories("app.db"); err != nil || len(all) != 1 {
		t.Errorf("histories: %+v, %v", all, err)
	}

	out, code := into(replica, "app.db", "-txid", txid)
	if code != 1 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "is a replica: the primary is http://"+primary.cfg.Addr) {
		t.Errorf("on the replica: exit code %d: %s", code, out)
	}
	if out, code := into(primary, "app.db", "-txid", "ffff"); code != 1 || !strings.Contains(out, "no such moment") {
		t.Errorf("exit code %d: %s", code, out)
	}
	is("app.db", "wrong,after")
}
