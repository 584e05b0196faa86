package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// seeded makes a node begin with what the archive has.
func seeded(a *archiveAt) option {
	return func(c *childnode.Config) {
		c.Backup = append(a.section(), "interval: 50ms", "max-requests: 1000", "seed: true")
	}
}

// archivedNode is a primary with two databases in the archive, one of some megabytes.
func archivedNode(t *testing.T, a *archiveAt) *node {
	p := startNode(t, func(c *childnode.Config) { c.Backup = append(a.section(), "interval: 50ms", "max-requests: 1000") })
	for name, mode := range map[string]string{"large.db": "wal", "dir/small.db": "delete"} {
		if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		c := openPatient(sqlitetest.Start(t), p.path(name), "journal_mode="+mode)
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		c.MustExec("INSERT INTO t(v) VALUES (1), (2)")
		if name == "large.db" {
			c.MustExec("CREATE TABLE big(v)")
			c.MustExec("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 1000) INSERT INTO big SELECT randomblob(4000) FROM n")
		}
		settle(c)
		a.archived(p, name)
		c.Close()
	}
	return p
}

// TestSeed: a new replica takes what the archive has from there, and from the primary only what came later: bytes of the
// transactions, not of the database.
func TestSeed(t *testing.T) {
	for name, place := range map[string]func(*testing.T) *archiveAt{"directory": archiveDir, "bucket": archiveBucket} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := place(t)
			p := archivedNode(t, a)
			p.stop() // what comes now is not archived
			p.cfg.Backup = append(a.section(), "interval: 10h")
			if err := p.cfg.WriteFile(p.configPath()); err != nil {
				t.Fatal(err)
			}
			p.start()
			c := openPatient(sqlitetest.Start(t), p.path("large.db"))
			c.MustExec("INSERT INTO t(v) VALUES (3)")
			settle(c)

			proxy := startProxy(t, p, 1)
			r := startNode(t, behind(proxy), seeded(a))
			caughtUp(p, r, "large.db")
			caughtUp(p, r, "dir/small.db")
			reader := openPatient(sqlitetest.Start(t), r.path("large.db"))
			got := reader.MustText("SELECT group_concat(v) || ' ' || (SELECT count(*) FROM big) FROM t")
			reader.Close()
			if got != "1,2,3 1000" {
				t.Errorf("the replica has %q", got)
			}
			if n := proxy.Counts().Bytes; n > 400_000 {
				t.Errorf("%d bytes came from the primary, of a database of 4 MB that the archive had", n)
			} else {
				t.Logf("%d bytes from the primary", n)
			}
			out, code := r.cli("status", "-config", r.configPath())
			if code != 0 || !strings.Contains(out, "2 databases") || !strings.Contains(out, "came from the archive") {
				t.Errorf("status, exit code %d:\n%s", code, out)
			}
			sqlitetest.CheckIntegrity(t, r.path("large.db"))
			r.stop()
			r.start() // the archive is not asked again
			c.MustExec("INSERT INTO t(v) VALUES (4)")
			settle(c)
			caughtUp(p, r, "large.db")
		})
	}
}

// TestSeedLostCluster: all nodes are lost. A new primary begins with what the archive has, writes, and goes on in the
// archive's history; so does the next one after it.
func TestSeedLostCluster(t *testing.T) {
	a := archiveDir(t)
	first := archivedNode(t, a)
	gone := openPatient(sqlitetest.Start(t), first.path("gone.db"))
	gone.MustExec("CREATE TABLE t(v)")
	gone.MustExec("INSERT INTO t VALUES (1)")
	settle(gone)
	a.archived(first, "gone.db")
	gone.Close()
	if err := os.Remove(first.path("gone.db")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the archive knows that it was dropped", func() (bool, string) {
		out, err := a.run(binary(t), append([]string{"history", "-name", "gone.db"}, a.from...)...)
		return err == nil && strings.Contains(out, "dropped"), out
	})
	first.stop()
	want := "1,2"
	for _, row := range []string{"3", "4"} {
		p := startNode(t, seeded(a))
		c := openPatient(sqlitetest.Start(t), p.path("large.db"))
		if got := c.MustText("SELECT group_concat(v) FROM t"); got != want {
			t.Fatalf("the new primary has %q, want %q", got, want)
		}
		sqlitetest.CheckIntegrity(t, p.path("dir/small.db"))
		if _, err := os.Stat(p.path("gone.db")); err == nil {
			t.Error("a database that was dropped is there again")
		}
		c.MustExec("INSERT INTO t(v) VALUES (" + row + ")")
		settle(c)
		c.Close()
		want += "," + row
		a.archived(p, "large.db")
		p.stop()
	}
	a.has("large.db", want)
	if all, err := a.histories("large.db"); err != nil || len(all) != 1 {
		t.Errorf("histories: %+v, %v", all, err)
	}
}

// TestSeedFallsBack: a replica gets from the primary what the archive cannot give, and says so. A primary does not
// begin with nothing: it does not start.
func TestSeedFallsBack(t *testing.T) {
	a := archiveDir(t)
	p := archivedNode(t, a)
	objects, err := filepath.Glob(filepath.Join(a.from[1], "large.db/history-*/ltx/0/*"))
	if err != nil || len(objects) == 0 {
		t.Fatalf("%v, %v", objects, err)
	}
	for _, file := range objects {
		if err := os.Truncate(file, 150); err != nil {
			t.Fatal(err)
		}
	}
	r := startNode(t, follows(p), seeded(a))
	caughtUp(p, r, "large.db")
	caughtUp(p, r, "dir/small.db")
	sqlitetest.CheckIntegrity(t, r.path("large.db"))
	out, code := r.cli("status", "-config", r.configPath())
	if code != 0 || !strings.Contains(out, "1 databases") || !strings.Contains(out, "the others from the primary: large.db: object") {
		t.Errorf("status, exit code %d:\n%s", code, out)
	}
	if log := r.log.text(); !strings.Contains(log, "not everything was had from the archive") {
		t.Error("the log says nothing of it")
	}
	lost := newNode(t, seeded(a))
	out, code = lost.cli("mount", "-config", lost.configPath())
	if code != 1 || !strings.Contains(out, "this node is the primary and cannot begin with what the archive has") {
		t.Errorf("a primary, exit code %d:\n%s", code, out)
	}
}

// TestSeedCutOff: a start that was killed while it took databases from the archive begins anew.
func TestSeedCutOff(t *testing.T) {
	a := archiveDir(t)
	archivedNode(t, a).stop()
	n := newNode(t, seeded(a))
	n.proc = n.launch()
	eventually(t, "the seed has begun", func() (bool, string) {
		_, err := os.Stat(filepath.Join(n.cfg.Data, "seeding"))
		return err == nil || strings.Contains(n.log.text(), "begins with what"), n.log.text()
	})
	n.kill()
	for _, file := range []string{"dbs/0000000000000001/name", "files/.large.db.1.tmp", "files/large.db"} {
		path := filepath.Join(n.cfg.Data, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Data, "seeding"), nil, 0o644); err != nil { // if it was quicker than the kill
		t.Fatal(err)
	}
	n.start()
	for _, name := range []string{"large.db", "dir/small.db"} {
		if got := openPatient(sqlitetest.Start(t), n.path(name)).MustText("SELECT group_concat(v) FROM t"); got != "1,2" {
			t.Errorf("%s has %q", name, got)
		}
		sqlitetest.CheckIntegrity(t, n.path(name))
	}
	if _, err := os.Stat(n.path(".large.db.1.tmp")); err == nil {
		t.Error("a file of the start that was killed is left")
	}
}
