package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/internal/verify"
)

// This file does to databases what is done to files.

// report verifies a node, which may be running.
func (p *pair) report(n *node) map[string]*verify.Database {
	p.t.Helper()
	report, err := verify.Run(timeout(p.t), verify.Options{DataDir: n.cfg.Data, Keys: n.keys, TempDir: p.t.TempDir()})
	must(p.t, err)
	out := map[string]*verify.Database{}
	for _, db := range report.Databases {
		out[db.Name] = db
	}
	return out
}

// elsewhere makes a database outside of the mount.
func elsewhere(t *testing.T, rows, pageSize int, mode string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "elsewhere.db")
	sqlitetest.CLI(t, path, fmt.Sprintf(`PRAGMA page_size=%d; PRAGMA journal_mode=%s; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO t(v) SELECT randomblob(500) FROM n;`, pageSize, mode, rows))
	return path
}

// same waits until the follower has the database with so many rows.
func (p *pair) same(name string, want int) {
	p.t.Helper()
	if got := rows(p.t, p.path(name)); got != fmt.Sprint(want) {
		p.t.Errorf("%s: %s rows on the primary, want %d", name, got, want)
	}
	p.makes(name)
	if got := rows(p.t, p.follower.path(name)); got != fmt.Sprint(want) {
		p.t.Errorf("%s: %s rows on the follower, want %d", name, got, want)
	}
}

func TestCopiedReplacedAndRemovedDatabases(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		run(t, "cp", elsewhere(t, 10, 4096, "delete"), p.path("app.db"))
		p.same("app.db", 10)
		run(t, "cp", elsewhere(t, 200, 4096, "wal"), p.path("app.db"))
		p.same("app.db", 200)
		run(t, "cp", elsewhere(t, 20, 1024, "delete"), p.path("app.db")) // shorter, with other pages
		p.same("app.db", 20)
		run(t, "cp", elsewhere(t, 30, 4096, "delete"), p.path("app.db"))
		p.same("app.db", 30)
		run(t, "cp", elsewhere(t, 40, 4096, "delete"), p.path("new.db"))
		must(t, os.Rename(p.path("new.db"), p.path("app.db")))
		p.same("app.db", 40)
		run(t, "cp", elsewhere(t, 50, 512, "wal"), p.path("app.tmp"))
		must(t, os.Rename(p.path("app.tmp"), p.path("app.db")))
		p.same("app.db", 50)
		// Written in pieces that are no pages, without being emptied first.
		run(t, "dd", "if="+elsewhere(t, 600, 4096, "delete"), "of="+p.path("app.db"), "bs=777", "conv=notrunc", "status=none")
		p.same("app.db", 600)
		for i := range 30 {
			p.database("app2.db", i%4)
			must(t, os.Remove(p.path("app2.db")))
		}
		must(t, os.Remove(p.path("app.db")))
		p.makes()
	})
}

// A database that is overwritten while an application has it open is captured when the file is quiet.
func TestGrownWithZerosAndTruncated(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		for _, mode := range []string{"delete", "wal"} {
			name := mode + ".db"
			p.database(name, 20, "journal_mode="+mode)
			st, err := os.Stat(p.path(name))
			must(t, err)
			must(t, os.Truncate(p.path(name), st.Size()+5*4096))
			f, err := os.OpenFile(p.path(name), os.O_RDWR, 0)
			must(t, err)
			must(t, unix.Fallocate(int(f.Fd()), 0, st.Size(), 10*4096))
			must(t, f.Close())
			c := sqlitetest.Open(t, p.path(name))
			fill(c, 50, 900)
			c.Close()
			if got := rows(t, p.path(name)); got != "70" {
				t.Errorf("%s: %s rows after the file has grown, want 70", mode, got)
			}
		}
		p.makes("delete.db", "wal.db")
	})
}

// An emptied file is no database any more, and a new one when SQLite writes it again.
func TestEmptiedDatabase(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		p.database("app.db", 20)
		p.same("app.db", 20)
		must(t, os.Truncate(p.path("app.db"), 0))
		p.makes()
		if b, err := os.ReadFile(p.path("app.db")); len(b) > 0 || err != nil {
			t.Errorf("%d bytes in the emptied file: %v", len(b), err)
		}
		p.database("app.db", 7, "page_size=512")
		p.same("app.db", 7)
	})
}

func TestFilesThatBecomeDatabasesAndBack(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		write(t, p.path("app.db"), strings.Repeat("no database. ", 1000))
		must(t, os.WriteFile(p.path("zero.db"), nil, 0o600))
		p.makes()
		run(t, "cp", elsewhere(t, 15, 4096, "delete"), p.path("app.db"))
		p.same("app.db", 15)
		p.database("zero.db", 2)
		p.makes("app.db", "zero.db")
		// Overwritten by what is none, it is a file like others.
		write(t, p.path("zero.db"), "no database any more\n")
		p.makes("app.db")
		if b, err := os.ReadFile(p.path("zero.db")); string(b) != "no database any more\n" {
			t.Errorf("it holds %q: %v", b, err)
		}
		p.primary.stop()
		p.primary.start()
		p.makes("app.db")
	})
}

// A file whose application encrypts it has a journal and no header: it stays local, with a warning.
func TestEncryptedDatabaseStaysLocalWithAWarning(t *testing.T) {
	p := startPair(t)
	secret := strings.Repeat("\x8f\x13 encrypted \xee", 1000)
	for range 3 {
		write(t, p.path("secret.db-journal"), "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"+strings.Repeat("\x00", 504))
		write(t, p.path("secret.db"), secret)
		must(t, os.Remove(p.path("secret.db-journal")))
	}
	p.makes()
	if _, err := os.Stat(p.follower.path("secret.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("on the follower: %v", err)
	}
	warnings := 0
	for line := range strings.Lines(p.primary.log.text()) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, "secret.db") {
			warnings++
		}
	}
	if warnings != 1 {
		t.Errorf("%d warnings in the log, want 1", warnings)
	}
}

// Two programs may have one database open in different rollback-journal modes.
func TestProgramsWithDifferentJournalModes(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		p.database("app.db", 1)
		var conns []*sqlitetest.Conn
		for _, mode := range []string{"delete", "truncate", "persist", "memory", "off"} {
			conns = append(conns, sqlitetest.Open(t, p.path("app.db"), "journal_mode="+mode, "cache_size=5"))
		}
		for range 4 {
			for _, c := range conns {
				fill(c, 5, 1500)
				c.MustExec("UPDATE t SET v = randomblob(200) WHERE id % 4 = 0")
			}
		}
		for _, c := range conns {
			c.Close()
		}
		p.same("app.db", 101)
	})
}
