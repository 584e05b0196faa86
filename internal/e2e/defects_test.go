package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/childnode"
	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// The defects of earlier designs that concern capture, recovery or files, each as a test of what must
// hold instead.
func TestDefects(t *testing.T) {
	for _, d := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"R1_ADatabaseMayShrinkAndGrowByAnyNumberOfPages", shrinkAndGrow},
		{"R2_AFullDiskRefusesCommitsAndEndsNothing", fullDisk},
		{"R3_AModeSwitchBeforeACrash", switchBeforeCrash},
		{"R4_FollowersFollowModeSwitchesUnderReaders", switchesUnderReaders},
		{"R5_AnotherPageSizeIsANewSnapshot", otherPageSize},
		{"R6_PagesThatNobodyWroteHaveOneChecksum", unwrittenPages},
		{"R7_ADatabaseWithoutAJournalIsCapturedWhileItIsOpen", withoutJournal},
		{"R10_AnEmptyPrimaryDoesNotReplaceAFollower", emptyPrimary},
		{"R13_ReadersAndAppliesDoNotWaitForEachOther", readersAndApplies},
		{"R14_ASnapshotLocksNobodyOut", snapshotLocksNobody},
		{"R19_OneBadDatabaseStopsNoOther", oneBadDatabase},
		{"R20_TheLogStaysWithinItsBounds", logBounds},
		{"R22_EmptyAndOpenFilesAreRemoved", removedFiles},
		{"R23_AJournalMayBeTruncatedToAnySize", journalSizes},
		{"R24_AnEmptyJournalMayBeRemoved", emptyJournal},
		{"R25_NothingIsKeptForWhatIsClosed", nothingKept},
		{"R27_AnUnreadableDatabaseIsKept", unreadableKept},
		{"R30_VerifyFindsADamagedPage", verifyFindsDamage},
	} {
		t.Run(d.name, d.run)
	}
}

func shrinkAndGrow(t *testing.T) {
	p := startPair(t)
	for _, vacuum := range []string{"none", "full"} {
		name := vacuum + ".db"
		c := sqlitetest.Open(t, p.path(name), "page_size=512", "auto_vacuum="+vacuum, "journal_mode=wal", "synchronous=off")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		for range 2 {
			fill(c, 1000, 1500) // more than 3000 pages
			c.MustExec("DELETE FROM t WHERE id > 10")
			if vacuum == "none" {
				c.MustExec("VACUUM")
			}
			c.MustExec("PRAGMA wal_checkpoint(TRUNCATE)")
			if n := c.MustInt("PRAGMA page_count"); n > 100 {
				t.Errorf("%s: %d pages after most rows are gone", name, n)
			}
		}
		c.Close()
	}
	p.makes("none.db", "full.db")
}

// onSmallDisk gives the logs of a node a disk of their own of so many bytes, and returns its path.
func onSmallDisk(t *testing.T, n *node, size int) string {
	t.Helper()
	n.start() // makes the directories
	n.stop()
	dir := filepath.Join(n.cfg.Data, "dbs")
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)))
	t.Cleanup(func() {
		// The node is ended by the cleanup of newNode, which comes later.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func fullDisk(t *testing.T) {
	n := newNode(t)
	disk := onSmallDisk(t, n, 2<<20)
	n.start()
	app := sqlitetest.Start(t)
	rollback := app.Open(n.path("rollback.db"))
	wal := app.Open(n.path("wal.db"), "journal_mode=wal", "wal_autocheckpoint=5")
	for _, c := range []*sqlitetest.Conn{rollback, wal} {
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		fill(c, 5, 1000)
	}
	settle(wal)
	filler := filepath.Join(disk, "filler")
	f, err := os.Create(filler)
	must(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	must(t, f.Close())

	if _, err := rollback.Exec("UPDATE t SET v = randomblob(50000)"); err == nil {
		t.Error("a commit that cannot be logged was acknowledged")
	}
	if n := rollback.MustInt("SELECT count(*) FROM t WHERE length(v) = 1000"); n != 5 {
		t.Errorf("%d rows after the refused commit, want the 5 of before", n)
	}
	for range 10 {
		fill(wal, 5, 1000) // asynchronous: in the write-ahead log, which grows
	}
	if n := wal.MustInt("SELECT count(*) FROM t"); n != 55 {
		t.Errorf("%d rows, want 55", n)
	}
	must(t, os.Remove(filler))
	eventually(t, "commits are taken again", func() (bool, string) {
		_, err := rollback.Exec("UPDATE t SET v = zeroblob(2000)")
		return err == nil, fmt.Sprint(err)
	})
	fill(wal, 1, 100)
	wal.MustExec("PRAGMA wal_checkpoint(TRUNCATE)")
	app.Exit()
	n.stop()
	for name, db := range n.verified() {
		if !db.Replayed {
			t.Errorf("%s: %+v, want a log that is whole", name, db)
		}
	}
	if !strings.Contains(n.log.text(), "level=ERROR") {
		t.Error("nothing in the log says that the disk was full")
	}
}

func switchBeforeCrash(t *testing.T) {
	p := startPair(t)
	var names []string
	for i, switches := range [][]string{{"wal", "delete"}, {"delete", "wal"}, {"wal", "truncate", "wal", "persist"}, {"persist", "wal", "delete"}} {
		name := strings.Join(switches, "-") + ".db"
		names = append(names, name)
		p.database(name, 30, "journal_mode="+switches[0])
		app := sqlitetest.Start(t)
		c := app.Open(p.path(name))
		want := int64(30)
		for _, mode := range switches[1:] {
			fill(c, 5, 1500)
			want += 5
			if got := c.MustText("PRAGMA journal_mode=" + mode); got != mode {
				t.Errorf("%s: %s", mode, got)
			}
			fill(c, 5, 1500)
			want += 5
		}
		if i%2 == 0 {
			c.MustExec("BEGIN")
			c.MustExec("DELETE FROM t")
		}
		p.primary.kill()
		app.Kill()
		p.primary.start()
		if got := rows(t, p.path(name)); got != fmt.Sprint(want) {
			t.Errorf("%s: %s rows after the crash, want %d", name, got, want)
		}
	}
	p.makes(names...)
}

func switchesUnderReaders(t *testing.T) {
	p := startPair(t)
	p.database("app.db", 1)
	p.makes("app.db")
	app := sqlitetest.Start(t)
	reader := app.Open(p.follower.path("app.db"))
	c := sqlitetest.Open(t, p.path("app.db"))
	want := int64(1)
	for _, mode := range append(journalModes, "wal", "delete", "wal") {
		if got := c.MustText("PRAGMA journal_mode=" + mode); got != mode {
			t.Errorf("journal_mode=%s gave %s", mode, got)
		}
		for range 3 {
			fill(c, 2, 2000)
			want += 2
		}
		eventually(t, "the reader on the follower sees it", func() (bool, string) {
			n := reader.MustInt("SELECT count(*) FROM t")
			return n == want, fmt.Sprintf("%d of %d", n, want)
		})
		if got := reader.MustText("PRAGMA integrity_check"); got != "ok" {
			t.Errorf("after the switch to %s: %s", mode, got)
		}
	}
	app.Exit()
	c.Close()
	p.makes("app.db")
}

func otherPageSize(t *testing.T) {
	p := startPair(t)
	p.database("app.db", 50, "page_size=512")
	p.same("app.db", 50)
	for _, pageSize := range []int{65536, 1024, 4096} {
		c := sqlitetest.Open(t, p.path("app.db"))
		c.MustExec(fmt.Sprintf("PRAGMA page_size=%d", pageSize))
		c.MustExec("VACUUM")
		fill(c, 1, 100)
		c.Close()
		run(t, "cp", elsewhere(t, 10, pageSize/2, "delete"), p.path("copied.db"))
		eventually(t, "both nodes hold the same", func() (bool, string) {
			err := agree(t, p.primary, p.follower, []string{"app.db", "copied.db"})
			return err == nil, fmt.Sprint(err)
		})
		p.follower.stop()
		p.follower.start()
	}
	p.makes("app.db", "copied.db")
}

func unwrittenPages(t *testing.T) {
	p := startPair(t)
	var names []string
	for _, mode := range []string{"delete", "wal", "memory"} {
		name := mode + ".db"
		names = append(names, name)
		app := sqlitetest.Start(t)
		c := app.Open(p.path(name), "journal_mode="+mode)
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		for range 3 {
			// Allocated and freed in one transaction: leaves of the free list, which SQLite does not write.
			c.MustExec("BEGIN")
			fill(c, 50, 5000)
			c.MustExec("DELETE FROM t WHERE id > 1")
			c.MustExec("COMMIT")
		}
		app.Exit()
	}
	p.makes(names...)
	p.primary.kill()
	p.primary.start()
	late := startNode(t, follows(p.primary))
	p.makes(names...)
	for _, name := range names {
		caughtUp(p.primary, late, name)
	}
	late.stop()
	late.verified()
}

func withoutJournal(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		for _, mode := range []string{"memory", "off"} {
			name := mode + ".db"
			c := sqlitetest.Open(t, p.path(name), "journal_mode="+mode)
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			for i := range 5 {
				fill(c, 2, 3000)
				want := fmt.Sprint(2 * (i + 1))
				eventually(t, "the follower has what was committed", func() (bool, string) {
					out, err := sqlitetest.TryCLI(p.follower.path(name), "SELECT count(*) FROM t;")
					return err == nil && strings.TrimSpace(out) == want, fmt.Sprintf("%q of %s, %v", out, want, err)
				})
			}
			c.Close()
		}
		p.makes("memory.db", "off.db")
	})
}

func emptyPrimary(t *testing.T) {
	p := startPair(t)
	p.database("app.db", 20)
	p.same("app.db", 20)
	p.primary.stop()
	must(t, os.RemoveAll(p.primary.cfg.Data))
	p.primary.start()
	p.database("other.db", 1)
	eventually(t, "the follower says why it does not follow", func() (bool, string) {
		return strings.Contains(p.follower.log.text(), "cluster"), "nothing about a cluster in its log"
	})
	if got := rows(t, p.follower.path("app.db")); got != "20" {
		t.Errorf("%s rows on the follower, want 20", got)
	}
	p.follower.stop()
	if db := p.follower.verified()["app.db"]; db == nil || db.Max == 0 {
		t.Errorf("on the follower: %+v", db)
	}
}

func readersAndApplies(t *testing.T) {
	p := startPair(t)
	for _, name := range []string{"a.db", "b.db"} {
		p.database(name, 10, "journal_mode=wal")
	}
	p.makes("a.db", "b.db")
	app := sqlitetest.Start(t)
	held := app.Open(p.follower.path("a.db"))
	held.MustExec("BEGIN")
	if n := held.MustInt("SELECT count(*) FROM t"); n != 10 {
		t.Errorf("%d rows, want 10", n)
	}
	for _, name := range []string{"a.db", "b.db"} {
		c := sqlitetest.Open(t, p.path(name))
		if _, err := c.Repeat([]sqlapp.Step{insert(2000)}, 200, 0); err != nil {
			t.Fatal(err)
		}
		settle(c)
		c.Close()
		caughtUp(p.primary, p.follower, name)
	}
	if n := held.MustInt("SELECT count(*) FROM t"); n != 10 {
		t.Errorf("the snapshot changed to %d rows", n)
	}
	if got := rows(t, p.follower.path("a.db")); got != "210" {
		t.Errorf("a new reader sees %s rows, want 210", got)
	}
	app.Exit()
	p.makes("a.db", "b.db")
}

func snapshotLocksNobody(t *testing.T) {
	primary := startNode(t)
	modes := []string{"wal", "delete"}
	var conns []*sqlitetest.Conn
	for _, mode := range modes {
		c := sqlitetest.Open(t, primary.path(mode+".db"), "journal_mode="+mode, "synchronous=off")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		fill(c, 2000, 3000)
		conns = append(conns, c)
	}
	follower := startNode(t, follows(primary))
	for i, c := range conns {
		// No busy time-out: a lock taken for the snapshot would show.
		if done, err := c.Repeat([]sqlapp.Step{insert(500), {SQL: "SELECT count(*) FROM t"}}, 100, 0); err != nil {
			t.Errorf("%s, after %d rounds: %v", modes[i], done.Rounds, err)
		}
	}
	for _, c := range conns {
		c.Close()
	}
	p := &pair{t: t, primary: primary, follower: follower}
	p.makes("delete.db", "wal.db")
}

// logFiles are the files of the logs of a node, of one database or "*", with entries in them.
func logFiles(n *node, id string) ([]string, error) {
	return filepath.Glob(filepath.Join(n.cfg.Data, "dbs", id, "ltx", "*.*"))
}

// damageRecord cuts the log of a database short, in the first of its entries.
func damageRecord(t *testing.T, n *node, id string) {
	t.Helper()
	files, err := logFiles(n, id)
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	must(t, os.Truncate(files[0], 120))
}

func oneBadDatabase(t *testing.T) {
	p := startPair(t)
	for _, name := range []string{"bad.db", "good.db"} {
		p.database(name, 5)
		c := sqlitetest.Open(t, p.path(name))
		for range 3 {
			fill(c, 1, 3000)
		}
		c.Close()
	}
	p.makes("bad.db", "good.db")
	p.primary.stop()
	damageRecord(t, p.primary, p.report(p.primary)["bad.db"].ID)
	p.primary.start()
	c := sqlitetest.Open(t, p.path("good.db"))
	fill(c, 3, 100)
	c.Close()
	caughtUp(p.primary, p.follower, "good.db")
	if got := rows(t, p.follower.path("good.db")); got != "11" {
		t.Errorf("%s rows of the good one on the follower, want 11", got)
	}
	if got := rows(t, p.follower.path("bad.db")); got != "8" {
		t.Errorf("%s rows of the bad one on the follower, want the 8 that it had", got)
	}
}

func logBounds(t *testing.T) {
	const bound = 1 << 20
	p := startPair(t, func(c *childnode.Config) {
		c.DataKeys = []string{fmt.Sprintf("max-size: %d", bound), "retention: 24h", "retention-monitor-interval: 50ms"}
	})
	p.database("app.db", 1, "journal_mode=wal")
	c := sqlitetest.Open(t, p.path("app.db"), "synchronous=off")
	if _, err := c.Repeat([]sqlapp.Step{{SQL: "UPDATE t SET v = randomblob(50000)"}}, 200, 0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, n := range []*node{p.primary, p.follower} {
		eventually(t, "the log is within its bounds", func() (bool, string) {
			size := int64(0)
			entries, err := logFiles(n, "*")
			for _, path := range entries {
				st, serr := os.Stat(path)
				if serr == nil {
					size += st.Size()
				}
			}
			return err == nil && len(entries) > 0 && size <= bound, fmt.Sprintf("%d bytes in %d entries, %v", size, len(entries), err)
		})
	}
	p.makes("app.db")
}

func removedFiles(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		write(t, p.path("empty.db"), "")
		must(t, os.Remove(p.path("empty.db")))
		for _, mode := range []string{"delete", "wal"} {
			name := mode + ".db"
			p.database(name, 5, "journal_mode="+mode)
			app := sqlitetest.Start(t)
			c := app.Open(p.path(name))
			c.MustInt("SELECT count(*) FROM t")
			must(t, os.Remove(p.path(name)))
			app.Kill()
			for _, suffix := range []string{"-wal", "-shm"} {
				if err := os.Remove(p.path(name + suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
			}
			p.database(name, 7, "journal_mode="+mode)
		}
		p.makes("delete.db", "wal.db")
		if got := rows(t, p.follower.path("wal.db")); got != "7" {
			t.Errorf("%s rows on the follower, want the 7 of the new one", got)
		}
	})
}

func journalSizes(t *testing.T) {
	p := startPair(t)
	var names []string
	for _, mode := range []string{"persist", "truncate", "delete", "wal"} {
		for _, limit := range []int{0, 1, 1000, 30000} {
			name := fmt.Sprintf("%s%d.db", mode, limit)
			names = append(names, name)
			c := sqlitetest.Open(t, p.path(name), "page_size=1024", "journal_mode="+mode, fmt.Sprintf("journal_size_limit=%d", limit))
			c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
			for range 3 {
				fill(c, 20, 1500)
				c.MustExec("UPDATE t SET v = randomblob(1400)")
				c.MustExec("BEGIN; DELETE FROM t; ROLLBACK")
				c.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)")
			}
			c.Close()
		}
	}
	p.makes(names...)
}

func emptyJournal(t *testing.T) {
	p := startPair(t)
	p.database("app.db", 5)
	for _, name := range []string{"app.db", "none.db"} {
		for _, suffix := range []string{"-journal", "-wal"} {
			write(t, p.path(name+suffix), "")
			if err := os.Remove(p.path(name + suffix)); err != nil {
				t.Errorf("%s%s: %v", name, suffix, err)
			}
		}
	}
	c := sqlitetest.Open(t, p.path("app.db"))
	write(t, p.path("app.db-journal"), "")
	fill(c, 5, 100)
	c.Close()
	p.same("app.db", 10)
}

// openFiles counts the descriptors of a node's process.
func openFiles(t *testing.T, n *node) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.proc.PID()))
	must(t, err)
	return len(fds)
}

func nothingKept(t *testing.T) {
	p := startPair(t)
	round := func(i int) {
		name := fmt.Sprintf("%d.db", i)
		p.database(name, 3, "journal_mode="+journalModes[i%len(journalModes)])
		eventually(t, "the follower has "+name, func() (bool, string) {
			out, err := sqlitetest.TryCLI(p.follower.path(name), "SELECT count(*) FROM t;")
			return err == nil && strings.TrimSpace(out) == "3", fmt.Sprintf("%q, %v", out, err)
		})
		must(t, os.Remove(p.path(name)))
	}
	for i := range len(journalModes) {
		round(i)
	}
	p.makes()
	before := [2]int{openFiles(t, p.primary), openFiles(t, p.follower)}
	for i := range 30 {
		round(100 + i)
	}
	p.makes()
	for i, n := range []*node{p.primary, p.follower} {
		eventually(t, "the descriptors are closed", func() (bool, string) {
			now := openFiles(t, n)
			return now <= before[i]+15, fmt.Sprintf("node %d has %d open, had %d", i, now, before[i])
		})
	}
}

func unreadableKept(t *testing.T) {
	p := startPair(t)
	p.database("app.db", 5)
	c := sqlitetest.Open(t, p.path("app.db"))
	for range 3 {
		fill(c, 1, 3000)
	}
	c.Close()
	p.makes("app.db")
	p.primary.stop()
	id := p.report(p.primary)["app.db"].ID
	damageRecord(t, p.primary, id)
	file, err := os.ReadFile(filepath.Join(p.primary.cfg.Data, "files", "app.db"))
	must(t, err)
	entries := listing(t, filepath.Join(p.primary.cfg.Data, "dbs", id, "ltx"))
	p.primary.start()
	if _, err := os.ReadFile(p.path("app.db")); err == nil {
		t.Error("a database whose record is damaged can be opened")
	}
	p.primary.stop()
	now, err := os.ReadFile(filepath.Join(p.primary.cfg.Data, "files", "app.db"))
	if err != nil || string(now) != string(file) {
		t.Errorf("the file is not what it was: %d bytes, %v", len(now), err)
	}
	if listing(t, filepath.Join(p.primary.cfg.Data, "dbs", id, "ltx")) != entries {
		t.Error("the log is not what it was")
	}
	if got := rows(t, p.follower.path("app.db")); got != "8" {
		t.Errorf("%s rows on the follower, want 8", got)
	}
	p.primary.start()
}

func verifyFindsDamage(t *testing.T) {
	n := startNode(t)
	p := &pair{t: t, primary: n, follower: n}
	p.database("app.db", 50)
	n.stop()
	if code, stdout, stderr := runCommand(t, "verify", "-config", n.configPath()); code != 0 || !strings.Contains(stdout, "ok") {
		t.Errorf("exit code %d of a whole database:\n%s%s", code, stdout, stderr)
	}
	path := filepath.Join(n.cfg.Data, "files", "app.db")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{0xff}, 3*4096+100)
	must(t, err)
	must(t, f.Close())
	if code, stdout, _ := runCommand(t, "verify", "-config", n.configPath()); code != 1 || !strings.Contains(stdout, "page 4") {
		t.Errorf("exit code %d of a damaged database:\n%s", code, stdout)
	}
}
