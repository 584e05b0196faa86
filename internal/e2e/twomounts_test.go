package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// twoMounts has the node show its store a second time.
func twoMounts(c *childnode.Config) { c.ForwardDir = c.Mount + ".forward" }

// second is the node as programs see it on its second mount.
func (n *node) second() *node { return &node{t: n.t, cfg: childnode.Config{Mount: n.cfg.ForwardDir}} }

// busyThere fails the test unless a program on c finds the write lock taken.
func busyThere(t testing.TB, c *sqlitetest.Conn, who string) {
	t.Helper()
	if _, err := c.Exec("BEGIN IMMEDIATE"); !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		t.Fatalf("%s: BEGIN IMMEDIATE: %v, want SQLITE_BUSY", who, err)
	}
}

// Programs on two mounts of one store are as on one machine without litefs: they see each other's locks, commits, shared
// memory, journals and deaths, in every journal mode.
func TestTwoMounts(t *testing.T) {
	for _, mode := range []string{"wal", "delete", "truncate", "persist"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, twoMounts)
			patient := openPatient(sqlitetest.Start(t), n.path("app.db"), "journal_mode="+mode)
			patient.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
			paths := []string{n.path("app.db"), n.second().path("app.db")}
			var conns, others []*sqlitetest.Conn
			for _, path := range paths {
				conns = append(conns, sqlitetest.Start(t).Open(path, "busy_timeout=0"))
				others = append(others, sqlitetest.Start(t).Open(path, "busy_timeout=0"))
			}
			rows := int64(0)
			for i, c := range conns {
				d := conns[1-i]
				for range 3 {
					c.MustExec("BEGIN IMMEDIATE")
					c.MustExec("INSERT INTO t(v) VALUES (randomblob(9000))")
					busyThere(t, d, fmt.Sprint("on the other mount of ", i))
					busyThere(t, others[i], fmt.Sprint("on mount ", i))
					if got := d.MustInt("SELECT count(*) FROM t"); got != rows {
						t.Fatalf("mount %d has %d rows, want %d", 1-i, got, rows)
					}
					c.MustExec("COMMIT")
					rows++
					if got := d.MustInt("SELECT count(*) FROM t"); got != rows {
						t.Fatalf("mount %d has %d rows after the commit, want %d", 1-i, got, rows)
					}
				}
				// Who reads on one mount keeps a checkpoint, or a commit of a rollback journal, on the other from its end.
				d.MustExec("BEGIN")
				d.MustInt("SELECT count(*) FROM t")
				if mode == "wal" {
					c.MustExec("INSERT INTO t(v) VALUES ('behind the reader')")
					rows++
					if got := c.MustText("PRAGMA wal_checkpoint(TRUNCATE)"); got != "1" {
						t.Fatalf("a checkpoint under a reader on the other mount: busy=%s, want 1", got)
					}
				} else if _, err := c.Exec("INSERT INTO t(v) VALUES ('never')"); !sqlapp.IsCode(err, sqlapp.CodeBusy) {
					t.Fatalf("a commit under a reader on the other mount: %v, want SQLITE_BUSY", err)
				}
				d.MustExec("COMMIT")
				if mode == "wal" {
					if got := c.MustText("PRAGMA wal_checkpoint(TRUNCATE)"); got != "0" {
						t.Fatalf("a checkpoint without a reader: busy=%s, want 0", got)
					}
				}
			}
			// A writer is killed with pages of its transaction in the files: the other mount has its locks, and rolls it back.
			for i, path := range paths {
				dying := sqlitetest.Start(t)
				c := dying.Open(path, "busy_timeout=60000", "cache_size=1")
				c.MustExec("BEGIN IMMEDIATE")
				c.MustExec("UPDATE t SET v = 'torn'")
				for range 20 {
					c.MustExec("INSERT INTO t(v) VALUES (randomblob(5000))")
				}
				busyThere(t, conns[1-i], "while its writer lives")
				dying.Kill()
				d := openPatient(sqlitetest.Start(t), paths[1-i])
				d.MustExec("INSERT INTO t(v) VALUES ('after the dead')")
				rows++
				for _, c := range conns {
					if got := c.MustInt("SELECT count(*) FROM t WHERE v <> 'torn'"); got != rows {
						t.Fatalf("%d rows after the death of a writer on mount %d, want %d", got, i, rows)
					}
				}
				d.Close()
			}
			for _, path := range paths {
				sqlitetest.CheckIntegrity(t, path)
			}
			for _, c := range append(append(conns, others...), patient) {
				c.Close()
			}
			n.stop()
			n.verified()
		})
	}
}

// Programs of four kinds increment one counter through both mounts at once, and one of them is killed again and again:
// nothing is lost.
func TestTwoMountsCounters(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, twoMounts)
			c := openPatient(sqlitetest.Start(t), n.path("app.db"), "journal_mode="+mode)
			k := newCounting(t, c)
			k.command = unlocked
			during(t, max(3*time.Second, soakFor(t)/6),
				func(ctx context.Context) { k.count(ctx, n, "a", 20, inC) },
				func(ctx context.Context) { k.count(ctx, n, "s", 5, inShell) },
				func(ctx context.Context) { k.count(ctx, n.second(), "p", 5, inPython) },
				func(ctx context.Context) { k.count(ctx, n.second(), "b", 20, inC) },
				func(ctx context.Context) { killsWriters(ctx, k, n.second()) })
			k.settled(n)
			c.Close()
			n.stop()
			n.verified()
		})
	}
}

// killsWriters runs a program that increments, and kills it, until ctx ends.
func killsWriters(ctx context.Context, k *counting, n *node) {
	for i := 0; ctx.Err() == nil; i++ {
		dying, cancel := context.WithTimeout(ctx, time.Duration(50+i*13%100)*time.Millisecond)
		args := inC(k, n, fmt.Sprintf("k.%d", i), 1000)
		out, _ := exec.CommandContext(dying, args[0], args[1:]...).Output() // killed
		cancel()
		k.mu.Lock()
		for line := range strings.Lines(string(out)) {
			if key, ok := strings.CutPrefix(strings.TrimSpace(line), "ok "); ok {
				k.oks[key] = true
			}
		}
		k.errs++
		k.mu.Unlock()
	}
}

// On a replica the first mount is as ever, and on the second programs write.
func TestTwoMountsOfAReplica(t *testing.T) {
	t.Parallel()
	primary := startNode(t, twoMounts)
	c := openPatient(sqlitetest.Start(t), primary.second().path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	replica := startNode(t, follows(primary), twoMounts)
	caughtUp(primary, replica, "app.db")
	first := sqlitetest.Start(t).Open(replica.path("app.db"), "busy_timeout=0")
	second := openPatient(sqlitetest.Start(t), replica.second().path("app.db"))
	busyThere(t, first, "on the first mount of a replica")
	for i := range int64(5) {
		second.MustExec("INSERT INTO t(v) VALUES ('replica')")
		for name, conn := range map[string]*sqlitetest.Conn{"the primary": c, "the first mount": first} {
			if got := conn.MustInt("SELECT count(*) FROM t WHERE v = 'replica'"); got != i+1 {
				t.Fatalf("%s has %d rows, want %d", name, got, i+1)
			}
		}
		c.MustExec("INSERT INTO t(v) VALUES ('primary')")
	}
	first.MustExec("BEGIN")
	first.MustInt("SELECT count(*) FROM t") // its snapshot holds nobody up
	second.MustExec("INSERT INTO t(v) VALUES ('replica')")
	if got := first.MustInt("SELECT count(*) FROM t WHERE v = 'replica'"); got != 5 {
		t.Errorf("a snapshot has %d rows, want 5", got)
	}
	first.MustExec("COMMIT")
	// While the lock is here a program on the first mount may get in. It ends its transaction, however long that takes.
	eventually(t, "a program on the first mount gets in", func() (bool, string) {
		second.MustExec("INSERT INTO t(v) VALUES ('second')")
		_, err := first.Exec("BEGIN IMMEDIATE")
		return err == nil, fmt.Sprint(err)
	})
	first.MustExec("INSERT INTO t(v) VALUES ('first')")
	time.Sleep(2 * time.Second) // longer than a lock is kept that nobody uses, or that has been used for long
	first.MustExec("COMMIT")
	if got := c.MustInt("SELECT count(*) FROM t WHERE v = 'first'"); got != 1 {
		t.Errorf("the primary has %d rows of the first mount, want 1", got)
	}
	replica.givenBack()
	eventually(t, "the first mount is as ever", func() (bool, string) {
		_, err := first.Exec("BEGIN IMMEDIATE; ROLLBACK")
		return sqlapp.IsCode(err, sqlapp.CodeBusy), fmt.Sprint(err)
	})
	first.Close()
	second.Close()
	c.Close()
	caughtUp(primary, replica, "app.db")
	sameBytes("app.db", replica, primary)
}

// The second mount may be taken away, with programs in the middle of a transaction, and the first goes on; the first is
// busy while the second is there. After kill -9 of the daemon both are back.
func TestTwoMountsEnd(t *testing.T) {
	t.Parallel()
	n := startNode(t, twoMounts)
	c := openPatient(sqlitetest.Start(t), n.path("app.db"), "journal_mode=wal")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	if _, err := os.Stat(n.second().path("app.db-lock")); err != nil {
		t.Errorf("the file to lock is not on the second mount: %v", err)
	}
	if err := unix.Unmount(n.cfg.Mount, 0); err != unix.EBUSY {
		t.Errorf("unmount of the first: %v, want EBUSY", err)
	}
	d := sqlitetest.Start(t)
	lost := d.Open(n.second().path("app.db"), "busy_timeout=60000")
	lost.MustExec("INSERT INTO t(v) VALUES (1)")
	lost.MustExec("BEGIN IMMEDIATE")
	lost.MustExec("INSERT INTO t(v) VALUES (2)")
	if err := childnode.Detach(n.cfg.ForwardDir); err != nil {
		t.Fatal(err)
	}
	c.MustExec("INSERT INTO t(v) VALUES (3)")
	if _, err := lost.Exec("COMMIT"); err == nil {
		t.Error("a transaction was committed on a mount that was gone")
	}
	d.Kill()
	if got := c.MustText("SELECT group_concat(v) FROM t"); got != "1,3" {
		t.Errorf("rows %s, want 1,3", got)
	}
	c.Close()
	n.killAll()
	n.start()
	c = openPatient(sqlitetest.Start(t), n.second().path("app.db"))
	c.MustExec("INSERT INTO t(v) VALUES (4)")
	if got := openPatient(sqlitetest.Start(t), n.path("app.db")).MustText("SELECT group_concat(v) FROM t"); got != "1,3,4" {
		t.Errorf("rows %s, want 1,3,4", got)
	}
	c.Close()
	sqlitetest.CheckIntegrity(t, n.path("app.db"))
}

// Without passthrough there is no second mount: the kernel would keep pages of one file twice.
func TestTwoMountsNeedPassthrough(t *testing.T) {
	t.Parallel()
	n := newNode(t, cached, twoMounts)
	out, err := exec.Command(binary(t), "mount", "-config", n.configPath()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "fuse.forward-dir needs fuse.passthrough: auto") {
		t.Errorf("%v, %s", err, out)
	}
	if entries, err := os.ReadDir(filepath.Dir(n.cfg.Mount)); err != nil || strings.Contains(fmt.Sprint(entries), "forward") {
		t.Errorf("%v, %v", entries, err)
	}
}
