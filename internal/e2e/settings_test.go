package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// setting is one combination of what an application may choose for a database.
type setting struct {
	mode     string
	pageSize int
	locking  string
	sync     string
}

func (s setting) String() string {
	return fmt.Sprintf("%s-%d-%s-%s", s.mode, s.pageSize, s.locking, s.sync)
}

var lockingModes = []string{"normal", "exclusive"}

// everySetting is the whole matrix.
func everySetting() (all []setting) {
	for _, mode := range journalModes {
		for _, pageSize := range []int{512, 4096, 65536} {
			for _, locking := range lockingModes {
				for _, sync := range synchronouses {
					all = append(all, setting{mode, pageSize, locking, sync})
				}
			}
		}
	}
	return all
}

// pairwise returns settings that have every pair of two choices between them, greedily.
func pairwise(all []setting) (chosen []setting) {
	type pair struct{ a, b string }
	pairs := func(s setting) (out []pair) {
		fields := []string{s.mode, fmt.Sprint(s.pageSize), "locking " + s.locking, "synchronous " + s.sync}
		for i := range fields {
			for j := i + 1; j < len(fields); j++ {
				out = append(out, pair{fields[i], fields[j]})
			}
		}
		return out
	}
	missing := map[pair]bool{}
	for _, s := range all {
		for _, p := range pairs(s) {
			missing[p] = true
		}
	}
	for len(missing) > 0 {
		var best setting
		most := 0
		for _, s := range all {
			n := 0
			for _, p := range pairs(s) {
				if missing[p] {
					n++
				}
			}
			if n > most {
				best, most = s, n
			}
		}
		for _, p := range pairs(best) {
			delete(missing, p)
		}
		chosen = append(chosen, best)
	}
	return chosen
}

// work uses a database of one setting: growing and shrinking, spilled, rolled back, closed and opened,
// left by a crash.
func (s setting) work(t *testing.T, path string) {
	app := sqlitetest.Start(t)
	open := func() *sqlitetest.Conn {
		return app.Open(path, fmt.Sprintf("page_size=%d", s.pageSize), "auto_vacuum=incremental", "locking_mode="+s.locking,
			"journal_mode="+s.mode, "synchronous="+s.sync, "cache_size=5", "cache_spill=2")
	}
	c := open()
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); CREATE INDEX tv ON t(v)")
	fill(c, 30, 700)
	c.MustExec("UPDATE t SET v = randomblob(900) WHERE id % 3 = 0")
	if s.locking == "normal" {
		reader := sqlitetest.Open(t, path)
		if n := reader.MustInt("SELECT count(*) FROM t"); n != 30 {
			t.Errorf("another connection sees %d rows, want 30", n)
		}
		reader.Close()
	}
	if s.mode != "off" { // without a journal there is no way back
		c.MustExec("BEGIN")
		fill(c, 20, 1500)
		c.MustExec("SAVEPOINT a")
		c.MustExec("DELETE FROM t")
		c.MustExec("ROLLBACK TO a")
		c.MustExec("COMMIT")
		c.MustExec("BEGIN")
		fill(c, 20, 1500)
		c.MustExec("ROLLBACK")
	} else {
		fill(c, 20, 1500)
	}
	c.MustQuery("PRAGMA wal_checkpoint(TRUNCATE)")
	c.MustExec("DELETE FROM t WHERE id > 10")
	c.MustQuery("PRAGMA incremental_vacuum")
	fill(c, 5, 100)
	c.Close()
	c = open()
	c.MustExec("VACUUM")
	fill(c, 5, 3000)
	want := c.MustInt("SELECT count(*) FROM t")
	if s.mode != "off" && s.mode != "memory" { // there SQLite itself may lose the database
		c.MustExec("BEGIN IMMEDIATE")
		fill(c, 40, 2000)
	}
	app.Kill()
	if got := strings.TrimSpace(sqlitetest.CLI(t, path, "SELECT count(*) FROM t;")); got != fmt.Sprint(want) {
		t.Errorf("%s rows after a crash, want %d", got, want)
	}
}

// applicationSettings works with each setting on a primary and proves that the follower is the same.
func applicationSettings(t *testing.T, settings []setting, options ...option) {
	primary := startNode(t, options...)
	follower := startNode(t, append(options[:len(options):len(options)], follows(primary))...)
	var names []string
	for _, s := range settings {
		names = append(names, s.String()+".db")
		if !t.Run(s.String(), func(t *testing.T) { s.work(t, primary.path(s.String()+".db")) }) {
			t.FailNow()
		}
	}
	settled(t, primary, follower, names...)
}

// settled waits until both nodes hold exactly the named databases, byte for byte the same, and proves
// it again of what they leave when they are stopped.
func settled(t *testing.T, primary, follower *node, names ...string) {
	t.Helper()
	eventually(t, "both nodes hold the same", func() (bool, string) {
		err := agree(t, primary, follower, names)
		return err == nil, fmt.Sprint(err)
	})
	sameEverywhere(t, primary, follower, names...)
	for _, n := range []*node{primary, follower} {
		noErrorLines(t, n)
	}
}

func noErrorLines(t *testing.T, n *node) {
	t.Helper()
	for line := range strings.Lines(n.log.text()) {
		if strings.Contains(line, "level=ERROR") {
			t.Errorf("in the log of %s: %s", n.cfg.Mount, line)
		}
	}
}

func TestSettings(t *testing.T) {
	t.Run("passthrough", func(t *testing.T) { applicationSettings(t, pairwise(everySetting())) })
	t.Run("cached", func(t *testing.T) { applicationSettings(t, pairwise(everySetting()), cached) })
}

func TestSoakSettings(t *testing.T) {
	settings := everySetting()
	if soakFor(t) == 0 {
		settings = settings[:1]
	}
	t.Run("passthrough", func(t *testing.T) { applicationSettings(t, settings) })
	t.Run("cached", func(t *testing.T) { applicationSettings(t, settings, cached) })
}

// switchModes switches a live database from one journal mode to another, while a second connection of
// another process has it open.
func switchModes(t *testing.T, path, from, to string) {
	one, two := sqlitetest.Start(t), sqlitetest.Start(t)
	c := one.Open(path, "journal_mode="+from, "cache_size=5", "cache_spill=2")
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	fill(c, 20, 2000)
	c.Close()
	// Opened anew: the mode of the file decides how the kernel serves it.
	a, b := one.Open(path, "journal_mode="+from, "cache_size=5", "cache_spill=2"), two.Open(path)
	rows := int64(20)
	both := func() {
		t.Helper()
		for _, c := range []*sqlitetest.Conn{a, b} {
			fill(c, 3, 1500)
			rows += 3
			c.MustExec("UPDATE t SET v = zeroblob(700) WHERE id % 5 = 1")
		}
		for _, c := range []*sqlitetest.Conn{a, b} {
			if n := c.MustInt("SELECT count(*) FROM t"); n != rows {
				t.Errorf("a connection sees %d rows, want %d", n, rows)
			}
		}
	}
	both()
	got, err := a.Query("PRAGMA journal_mode=" + to)
	if sqlapp.IsCode(err, sqlapp.CodeBusy) && (from == "wal" || to == "wal") {
		// In WAL mode every connection holds the database for as long as it is open.
		b.Close()
		got = a.MustQuery("PRAGMA journal_mode=" + to)
		b = two.Open(path)
	} else if err != nil {
		t.Fatalf("journal_mode=%s: %v", to, err)
	}
	if got[0][0] != to {
		t.Errorf("journal_mode=%s gave %v", to, got)
	}
	both()
	a.MustExec("DELETE FROM t WHERE id > 10")
	rows = a.MustInt("SELECT count(*) FROM t")
	both()
	a.MustExec("VACUUM")
	both()
	b.Close()
	a.Close()
}

func TestEverySwitchOfJournalModes(t *testing.T) {
	for _, mode := range []struct {
		name    string
		options []option
	}{{"passthrough", nil}, {"cached", []option{cached}}} {
		t.Run(mode.name, func(t *testing.T) {
			primary := startNode(t, mode.options...)
			follower := startNode(t, append(mode.options, follows(primary))...)
			var names []string
			for _, from := range journalModes {
				for _, to := range journalModes {
					if from == to {
						continue
					}
					name := from + "-" + to + ".db"
					names = append(names, name)
					if !t.Run(from+" to "+to, func(t *testing.T) { switchModes(t, primary.path(name), from, to) }) {
						t.FailNow()
					}
				}
			}
			settled(t, primary, follower, names...)
		})
	}
}
