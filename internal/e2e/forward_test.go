package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// daemonLocks has the mount ask for each lock.
func daemonLocks(c *childnode.Config) { c.DaemonLocks = true }

// shell runs statements with the real sqlite3, which knows nothing of locks that are borrowed.
func (n *node) shell(db, statements string) (string, error) {
	n.t.Helper()
	cmd := exec.CommandContext(timeout(n.t), "sqlite3", "-bail", "-cmd", ".timeout 20000", n.path(db), statements)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (n *node) mustShell(db, statements string) string {
	n.t.Helper()
	out, err := n.shell(db, statements)
	if err != nil {
		n.t.Fatalf("%s on %s: %v", statements, n.cfg.Mount, err)
	}
	return out
}

// sameBytes stops the nodes, replicas first, and compares all that they have of a database.
func sameBytes(db string, nodes ...*node) {
	nodes[0].t.Helper()
	var content []string
	for _, n := range nodes {
		n.stop()
		d := n.verified()[db]
		content = append(content, fmt.Sprintf("%x %x", d.Max, d.Checksum))
	}
	for _, c := range content[1:] {
		if c != content[0] {
			nodes[0].t.Fatalf("nodes differ: %q", content)
		}
	}
}

// A program on a replica writes as it would on one machine, in every journal mode, and knows nothing of it: its
// transactions are on the primary when COMMIT returns, and on all nodes afterwards.
func TestForward(t *testing.T) {
	for _, mode := range []string{"wal", "delete", "truncate", "persist", "cached"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			io := func(*childnode.Config) {}
			if mode == "cached" {
				mode, io = "wal", cached
			}
			primary := startNode(t, io)
			c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode="+mode)
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			replica, other := startNode(t, follows(primary), daemonLocks, io), startNode(t, follows(primary), io)
			caughtUp(primary, replica, "app.db")
			caughtUp(primary, other, "app.db")
			r := openPatient(sqlitetest.Start(t), replica.path("app.db"))
			for i := range 3 {
				r.MustExec("BEGIN IMMEDIATE")
				r.MustExec("INSERT INTO t(v) VALUES ('replica')")
				r.MustExec("COMMIT")
				if n := c.MustInt("SELECT count(*) FROM t WHERE v = 'replica'"); n != int64(1+i) {
					t.Fatalf("round %d: the primary has %d rows", i, n)
				}
				replica.mustShell("app.db", "INSERT INTO t(v) SELECT randomblob(5000) FROM t; DELETE FROM t WHERE length(v) > 100")
				c.MustExec("INSERT INTO t(v) VALUES ('primary')")
			}
			replica.mustShell("app.db", "CREATE TABLE u AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000) SELECT i, randomblob(300) AS b FROM n; VACUUM; PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(v) VALUES ('after')")
			if n := c.MustInt("SELECT count(*) FROM u"); n != 3000 {
				t.Fatalf("the primary has %d rows, want 3000", n)
			}
			caughtUp(primary, other, "app.db")
			caughtUp(primary, replica, "app.db")
			for _, n := range []*node{primary, replica, other} {
				sqlitetest.CheckIntegrity(t, n.path("app.db"))
			}
			c.Close()
			r.Close()
			sameBytes("app.db", other, replica, primary)
		})
	}
}
