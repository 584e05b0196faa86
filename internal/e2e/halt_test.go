package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// withLock is a command that runs under the primary's write lock on a node.
func (n *node) withLock(db string, args ...string) *exec.Cmd {
	args = append([]string{binary(n.t), "run", "-config", n.configPath(), "-with-halt-lock-on", db, "--"}, args...)
	if n.inside != nil {
		args = n.inside(args...)
	}
	cmd := exec.CommandContext(timeout(n.t), args[0], args[1:]...)
	if n.token != "" {
		cmd.Env = append(cmd.Environ(), "LITEFS_TOKEN="+n.token)
	}
	return cmd
}

// sql runs a statement with the real sqlite3 under the lock.
func (n *node) sql(db, statements string) (string, error) {
	n.t.Helper()
	return outputOf(n.withLock(db, "sqlite3", "-bail", "-cmd", ".timeout 20000", n.path(filepath.Base(db)), statements))
}

// outputOf runs a command; its error has what the command said.
func outputOf(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

func (n *node) mustSQL(db, statements string) string {
	n.t.Helper()
	out, err := n.sql(db, statements)
	if err != nil {
		n.t.Fatalf("%s on %s: %v", statements, n.cfg.Mount, err)
	}
	return out
}

// A program on a replica writes under the primary's lock, in every journal mode: its transactions are on the primary
// when COMMIT returns, and on all nodes afterwards. Without the lock the replica takes no write, before and after.
func TestHalt(t *testing.T) {
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
			replica, other := startNode(t, follows(primary), io), startNode(t, follows(primary), io)
			caughtUp(primary, replica, "app.db")
			caughtUp(primary, other, "app.db")

			for i := range 3 {
				replica.mustSQL("app.db", "INSERT INTO t(v) VALUES ('replica'); INSERT INTO t(v) SELECT randomblob(5000) FROM t; DELETE FROM t WHERE length(v) > 100")
				if n := c.MustInt("SELECT count(*) FROM t WHERE v = 'replica'"); n != int64(1+i) {
					t.Fatalf("round %d: the primary has %d rows", i, n)
				}
				c.MustExec("INSERT INTO t(v) VALUES ('primary')")
				caughtUp(primary, replica, "app.db")
				refused := sqlitetest.Open(t, replica.path("app.db"))
				if _, err := refused.Exec("INSERT INTO t(v) VALUES (1)"); err == nil {
					t.Fatal("a replica takes a write without the lock")
				}
				refused.Close()
			}
			replica.mustSQL("app.db", "CREATE TABLE u AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000) SELECT i, randomblob(300) AS b FROM n; VACUUM; PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(v) VALUES ('after')")
			if n := c.MustInt("SELECT count(*) FROM u"); n != 3000 {
				t.Fatalf("the primary has %d rows, want 3000", n)
			}
			caughtUp(primary, other, "app.db")
			caughtUp(primary, replica, "app.db")
			for _, n := range []*node{primary, replica, other} {
				sqlitetest.CheckIntegrity(t, n.path("app.db"))
			}
			c.Close()
			var content []string
			for _, n := range []*node{other, replica, primary} {
				n.stop()
				db := n.verified()["app.db"]
				content = append(content, fmt.Sprintf("%x %x", db.Max, db.Checksum))
			}
			if content[0] != content[1] || content[1] != content[2] {
				t.Fatalf("nodes differ: %q", content)
			}
		})
	}
}

// The command's exit code is that of litefs run; a database that is not there, or that a program has open in the wrong
// mode, is refused by name, and the command does not run.
func TestHaltRun(t *testing.T) {
	primary := startNode(t)
	c := openPatient(sqlitetest.Start(t), primary.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	replica := startNode(t, follows(primary))
	caughtUp(primary, replica, "app.db")

	// Before anybody had the lock: afterwards the write-ahead log may be open for direct I/O for a moment.
	reader := sqlitetest.Open(t, replica.path("app.db"))
	reader.MustInt("SELECT count(*) FROM t")
	for db, want := range map[string]string{
		"none.db":                "database not found",
		"app.db":                 "name the database in replica.halt-databases",
		replica.path("app.db"):   "name the database in replica.halt-databases",
		"../" + "app.db":         "path component",
		replica.path("../x/y.z"): "path component",
	} {
		out, err := replica.withLock(db, "echo", "it runs").CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "it runs") {
			t.Errorf("%s: %s, %v", db, out, err)
		}
	}
	reader.Close()

	var exit *exec.ExitError
	if err := replica.withLock("app.db", "sh", "-c", "exit 7").Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("%v, want exit code 7", err)
	}
	if out, err := primary.withLock("app.db", "sqlite3", primary.path("app.db"), "INSERT INTO t(v) VALUES (1); SELECT 'done'").CombinedOutput(); err != nil || string(out) != "done\n" {
		t.Errorf("on the primary: %s, %v", out, err)
	}
	replica.mustSQL(replica.path("app.db"), "SELECT 1")
}
