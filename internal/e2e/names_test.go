package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// pair is a primary and its follower.
type pair struct {
	t                 *testing.T
	primary, follower *node
}

func startPair(t *testing.T, options ...option) *pair {
	t.Helper()
	p := &pair{t: t, primary: startNode(t, options...)}
	p.follower = startNode(t, append(options[:len(options):len(options)], follows(p.primary))...)
	return p
}

// each runs fn with a pair of each I/O mode.
func eachPair(t *testing.T, fn func(p *pair)) {
	t.Run("passthrough", func(t *testing.T) { fn(startPair(t)) })
	t.Run("cached", func(t *testing.T) { fn(startPair(t, cached)) })
}

// path returns the path of a file in the primary's mount.
func (p *pair) path(name string) string { return p.primary.path(name) }

// makes waits until both nodes hold exactly the named databases, and looks for errors in the logs.
func (p *pair) makes(names ...string) {
	p.t.Helper()
	eventually(p.t, "both nodes hold the same", func() (bool, string) {
		err := agree(p.t, p.primary, p.follower, names)
		return err == nil, fmt.Sprint(err)
	})
	for _, n := range []*node{p.primary, p.follower} {
		noErrorLines(p.t, n)
	}
}

// database makes a database of some rows with the connection closed.
func (p *pair) database(name string, rows int, pragmas ...string) {
	p.t.Helper()
	if err := os.MkdirAll(path.Dir(p.path(name)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	app := sqlitetest.Start(p.t)
	c := app.Open(p.path(name), pragmas...)
	c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	fill(c, rows, 500)
	app.Exit()
}

// rows is how many rows SQLite reads of a database at a path.
func rows(t *testing.T, path string) string {
	t.Helper()
	return strings.TrimSpace(sqlitetest.CLI(t, path, "SELECT count(*) FROM t;"))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a command of the system.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func TestSubdirectoriesAndRenames(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		p.database("top.db", 3)
		p.database("a/b/deep.db", 5, "journal_mode=wal")
		p.database("a/mem.db", 2, "journal_mode=memory")
		p.makes("top.db", "a/b/deep.db", "a/mem.db")
		must(t, os.Rename(p.path("top.db"), p.path("a/low.db")))
		must(t, os.Rename(p.path("a"), p.path("z")))
		p.makes("z/low.db", "z/b/deep.db", "z/mem.db")
		if got := rows(t, p.follower.path("z/b/deep.db")); got != "5" {
			t.Errorf("%s rows on the follower, want 5", got)
		}
		// Every one goes on under its new name, with its history.
		for _, name := range []string{"z/low.db", "z/b/deep.db", "z/mem.db"} {
			c := sqlitetest.Open(t, p.path(name))
			fill(c, 2, 100)
			c.Close()
		}
		p.makes("z/low.db", "z/b/deep.db", "z/mem.db")
		if db := p.report(p.primary)["z/b/deep.db"]; db.Max < 3 {
			t.Errorf("renamed, and begun anew: %+v", db)
		}
		// A connection that is open keeps what it has.
		c := sqlitetest.Open(t, p.path("z/low.db"))
		c.MustInt("SELECT count(*) FROM t")
		must(t, os.Rename(p.path("z/low.db"), p.path("low.db")))
		if n := c.MustInt("SELECT count(*) FROM t"); n != 5 {
			t.Errorf("%d rows through a connection of before the rename, want 5", n)
		}
		c.Close()
		must(t, os.RemoveAll(p.path("z")))
		p.makes("low.db")
		if _, err := os.Stat(p.follower.path("z/mem.db")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("removed with its directory, on the follower: %v", err)
		}
	})
}

// A database is renamed and another one made under its name at once, again and again, as logs are rotated.
func TestRotatedDatabases(t *testing.T) {
	p := startPair(t)
	var names []string
	for i := range 20 {
		if i > 0 {
			names = append(names, fmt.Sprintf("old%d.db", i))
			must(t, os.Rename(p.path("app.db"), p.path(names[i-1])))
		}
		p.database("app.db", i+1)
	}
	p.makes(append(names, "app.db")...)
	for i, name := range names {
		if got := rows(t, p.follower.path(name)); got != fmt.Sprint(i+1) {
			t.Errorf("%s: %s rows on the follower, want %d", name, got, i+1)
		}
	}
}

// A follower that was away while a database was renamed and another one made under its name keeps what it
// has: nothing is sent twice.
func TestRenamedAndMadeAgainAtOnce(t *testing.T) {
	p := startPair(t)
	p.database("app.db", 1)
	names := []string{"app.db"}
	for i := range 6 {
		p.makes(names...)
		p.follower.stop()
		name := fmt.Sprintf("old%d.db", i)
		names = append(names, name)
		must(t, os.Rename(p.path("app.db"), p.path(name)))
		p.database("app.db", i+2)
		p.follower.start()
	}
	p.makes(names...)
	for i, name := range names[1:] {
		if got := rows(t, p.follower.path(name)); got != fmt.Sprint(i+1) {
			t.Errorf("%s: %s rows on the follower, want %d", name, got, i+1)
		}
	}
	if text := p.follower.log.text(); strings.Contains(text, "database dropped") {
		t.Errorf("the follower dropped a database that was renamed:\n%s", text)
	}
}

func TestForeignFilesStayLocal(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		p.database("app.db", 3)
		foreign := map[string]string{
			"notes.txt": "hello\n", "dir/config.json": "{}", "empty": "", "big": strings.Repeat("0123456789abcdef", 100_000),
			"x-journal": "a diary\n", "y-wal": "Wal, German for whale\n", "z-shm": "?", "SQLite format 3": "SQLite format 3",
		}
		must(t, os.Mkdir(p.path("dir"), 0o755))
		for name, content := range foreign {
			write(t, p.path(name), content)
		}
		must(t, os.Symlink("notes.txt", p.path("link")))
		if err := os.Link(p.path("notes.txt"), p.path("hard")); !errors.Is(err, os.ErrPermission) {
			t.Errorf("a hard link: %v, want permission denied", err)
		}
		check := func() {
			t.Helper()
			for name, content := range foreign {
				if got, err := os.ReadFile(p.path(name)); err != nil || string(got) != content {
					t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(content), err)
				}
			}
			if got, err := os.ReadFile(p.path("link")); string(got) != "hello\n" {
				t.Errorf("through the link: %q, %v", got, err)
			}
		}
		check()
		p.makes("app.db")
		p.primary.stop()
		p.primary.start()
		check()
		p.makes("app.db")
		there, err := tree(filepath.Join(p.follower.cfg.Data, "files"))
		must(t, err)
		for _, name := range there {
			if !strings.HasPrefix(name, "app.db") {
				t.Errorf("%s is on the follower", name)
			}
		}
		for name := range foreign {
			must(t, os.Remove(p.path(name)))
		}
		must(t, os.Remove(p.path("dir")))
		must(t, os.Remove(p.path("link")))
		p.makes("app.db")
	})
}

func TestTemporaryFilesOfSQLite(t *testing.T) {
	p := startPair(t)
	p.database("app.db", 3)
	cmd := exec.Command("sqlite3", p.path("app.db"))
	cmd.Env = append(os.Environ(), "SQLITE_TMPDIR="+p.primary.cfg.Mount)
	cmd.Stdin = strings.NewReader(`PRAGMA temp_store=file; PRAGMA cache_size=5; CREATE TEMP TABLE tt(v); PRAGMA temp.cache_size=5;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000) INSERT INTO tt SELECT randomblob(300) FROM n;
CREATE INDEX temp.ti ON tt(v); VACUUM; BEGIN; UPDATE t SET v = randomblob(10); SAVEPOINT a; UPDATE t SET v = 1; ROLLBACK TO a; COMMIT; SELECT count(*) FROM tt ORDER BY 1;`)
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "3000" {
		t.Errorf("%v: %s", err, out)
	}
	p.makes("app.db")
	left, err := tree(filepath.Join(p.primary.cfg.Data, "files"))
	must(t, err)
	if !slices.Equal(left, []string{"app.db"}) {
		t.Errorf("in the tree: %v", left)
	}
}

// edited is a node whose configuration file was changed.
func edited(t *testing.T, old, new string, options ...option) *node {
	t.Helper()
	n := newNode(t, options...)
	text := strings.Replace(n.cfg.YAML(), old, new, 1)
	write(t, n.configPath(), text)
	n.start()
	return n
}

func TestOtherUsersAndPermissions(t *testing.T) {
	const nobody = 65534
	primary := edited(t, "fuse:\n", "fuse:\n  allow-other: true\n")
	p := &pair{t: t, primary: primary, follower: startNode(t, follows(primary))}
	as := func(path, script string) (string, error) {
		cmd := exec.Command("sqlite3", "-bail", path)
		cmd.Stdin = strings.NewReader(script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	for dir := filepath.Dir(p.primary.cfg.Mount); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	p.database("root.db", 3)
	must(t, os.Chmod(p.path("root.db"), 0o600))
	if out, err := as(p.path("root.db"), "SELECT count(*) FROM t;"); err == nil {
		t.Errorf("another user reads a database of mode 0600: %s", out)
	}
	must(t, os.Chmod(p.path("root.db"), 0o644))
	if out, err := as(p.path("root.db"), "SELECT count(*) FROM t;"); err != nil || out != "3" {
		t.Errorf("another user reads a database of mode 0644: %s, %v", out, err)
	}
	if out, err := as(p.path("root.db"), "DELETE FROM t;"); err == nil {
		t.Errorf("another user writes a database of mode 0644: %s", out)
	}
	if out, err := as(p.path("new.db"), "CREATE TABLE t(a);"); err == nil {
		t.Errorf("another user makes a file in a directory of mode 0755: %s", out)
	}
	must(t, os.Mkdir(p.path("shared"), 0o755))
	must(t, os.Chmod(p.path("shared"), 0o1777))
	for _, mode := range []string{"delete", "wal", "persist"} {
		name := "shared/" + mode + ".db"
		if out, err := as(p.path(name), "PRAGMA journal_mode="+mode+"; CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t(v) VALUES (1);"); err != nil {
			t.Errorf("%s: %s, %v", name, out, err)
		}
		var st unix.Stat_t
		must(t, unix.Stat(p.path(name), &st))
		if st.Uid != nobody || st.Gid != nobody || st.Mode&0o777 != 0o644 {
			t.Errorf("%s belongs to %d:%d with mode %o", name, st.Uid, st.Gid, st.Mode)
		}
	}
	must(t, os.Chown(p.path("root.db"), nobody, -1))
	if out, err := as(p.path("root.db"), "PRAGMA journal_mode=memory; DELETE FROM t WHERE id = 1;"); err != nil {
		t.Errorf("the owner writes: %s, %v", out, err)
	}
	p.makes("root.db", "shared/delete.db", "shared/wal.db", "shared/persist.db")
	private(t, p.primary.cfg.Data)
	private(t, p.follower.cfg.Data)
}

// private checks that what litefs keeps in a data directory has no rights for others: all but the
// applications' own files.
func private(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(dir, "files") {
			return filepath.SkipDir
		}
		fi, err := d.Info()
		if err == nil && fi.Mode()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, fi.Mode())
		}
		return err
	}))
}

func TestMemoryMappedDatabases(t *testing.T) {
	eachPair(t, func(p *pair) {
		t := p.t
		var names []string
		for _, mode := range []string{"delete", "wal"} {
			name := mode + ".db"
			names = append(names, name)
			p.database(name, 50, "journal_mode="+mode)
			app, other := sqlitetest.Start(t), sqlitetest.Start(t)
			a, b := app.Open(p.path(name), "mmap_size=1000000000", "cache_size=5"), other.Open(p.path(name), "mmap_size=1000000000", "cache_size=5")
			for i := range 10 {
				fill(a, 20, 3000)
				b.MustExec("DELETE FROM t WHERE id % 3 = ?", i%3)
				if x, y := a.MustInt("SELECT sum(length(v)) FROM t"), b.MustInt("SELECT sum(length(v)) FROM t"); x != y {
					t.Errorf("%s: one connection sees %d bytes, the other %d", mode, x, y)
				}
			}
			a.MustExec("VACUUM")
			want := b.MustInt("SELECT sum(length(v)) FROM t")
			if got := b.MustText("PRAGMA integrity_check"); got != "ok" {
				t.Errorf("%s: %s", mode, got)
			}
			app.Exit()
			other.Exit()
			reader := sqlitetest.Open(t, p.follower.path(name), "mmap_size=1000000000")
			eventually(t, "the follower has it", func() (bool, string) {
				rows, err := reader.Query("SELECT sum(length(v)) FROM t")
				return err == nil && rows[0][0] == want, fmt.Sprint(rows, err)
			})
			reader.Close()
		}
		p.makes(names...)
	})
}

func TestManyFiles(t *testing.T) {
	const databases, others = 100, 300
	p := startPair(t)
	app := sqlitetest.Start(t)
	var names []string
	for i := range others {
		write(t, p.path(fmt.Sprintf("file-%d.txt", i)), strings.Repeat("x", i))
	}
	for i := range databases {
		names = append(names, fmt.Sprintf("%d.db", i))
		c := app.Open(p.path(names[i]), "synchronous=off", "journal_mode="+journalModes[i%len(journalModes)])
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
		fill(c, 3, 100)
		if i%3 > 0 {
			c.Close() // every third stays open
		}
	}
	ents, err := os.ReadDir(p.primary.cfg.Mount)
	must(t, err)
	seen := map[string]bool{}
	for _, ent := range ents {
		if seen[ent.Name()] {
			t.Errorf("%s is listed twice", ent.Name())
		}
		seen[ent.Name()] = true
	}
	for _, name := range names {
		if !seen[name] {
			t.Errorf("%s is not listed", name)
		}
	}
	app.Exit()
	p.makes(names...)
}

func TestPositionAndPrimaryAreFiles(t *testing.T) {
	p := startPair(t)
	p.database("dir/app.db", 3)
	p.makes("dir/app.db")
	a, err := os.ReadFile(p.path("dir/app.db-pos"))
	must(t, err)
	b, err := os.ReadFile(p.follower.path("dir/app.db-pos"))
	must(t, err)
	if !bytes.Equal(a, b) || len(a) != len("0000000000000001/8000000000000000\n") || a[16] != '/' {
		t.Errorf("positions %q and %q", a, b)
	}
	if host, err := os.ReadFile(p.follower.path(".primary")); string(host) != "127.0.0.1\n" {
		t.Errorf(".primary on the follower: %q, %v", host, err)
	}
	if _, err := os.ReadFile(p.path(".primary")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf(".primary on the primary: %v, want that it does not exist", err)
	}
	if err := os.WriteFile(p.path("dir/app.db-pos"), nil, 0o600); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a write of a position: %v, want permission denied", err)
	}
}
