package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
	"github.com/litefs/litefs/sqlitefile"
)

func busy(err error) bool { return sqlapp.IsCode(err, sqlapp.CodeBusy) }

// Whatever journal mode an application asks for, and whatever the header says,
// its writes are refused while the Peer is open, its reads work, and the same
// connection writes when the Peer is closed.
func TestLocalWriters(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, header := range []string{"delete", "wal"} {
		for _, mode := range []string{"", "delete", "truncate", "persist", "memory", "off", "wal"} {
			t.Run(header+"/"+mode, func(t *testing.T) {
				p := newPrimary(t, app, header, 4096)
				r := newReplica(t, Options{})
				r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
				c := app.Open(r.path)
				if mode != "" {
					// Refused, or ignored: the mode in force stays WAL.
					rows, err := c.Query("PRAGMA journal_mode=" + mode)
					if err != nil && !busy(err) {
						t.Fatalf("journal_mode=%s: %v", mode, err)
					}
					if err == nil && fmt.Sprint(rows[0][0]) != "wal" {
						t.Fatalf("journal_mode=%s: now %v", mode, rows[0][0])
					}
				}
				for i := range 3 {
					for _, sql := range []string{"INSERT INTO t(b) VALUES (1)", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "CREATE TABLE u(a)", "VACUUM"} {
						if _, err := c.Exec(sql); !busy(err) {
							t.Fatalf("%s: %v, want busy", sql, err)
						}
					}
					r.apply(p.tx("INSERT INTO t(b) VALUES (2)"))
					if n := c.MustInt("SELECT count(*) FROM t"); n != int64(i+1) {
						t.Fatalf("reads %d rows, want %d", n, i+1)
					}
					for _, ckpt := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
						if _, err := c.Query("PRAGMA wal_checkpoint(" + ckpt + ")"); err != nil && !busy(err) {
							t.Fatalf("checkpoint %s: %v", ckpt, err)
						}
					}
				}
				r.close()
				c.MustExec("INSERT INTO t(b) VALUES (3)")
				other := app.Open(r.path)
				if n := other.MustInt("SELECT count(*) FROM t"); n != 4 {
					t.Fatalf("reads %d rows after promotion, want 4", n)
				}
				other.Close()
				c.Close()
				sqlitetest.CheckIntegrity(t, r.path)
			})
		}
	}
}

// Applications may checkpoint. What would restart or truncate the WAL needs
// WRITE, which the Peer has: SQLite then says busy and does the work of PASSIVE.
// The WAL is never empty, because an empty one counts as absent.
func TestCheckpointsOfApplications(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		p := newPrimary(t, app, mode, 4096)
		r := newReplica(t, Options{})
		r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
		c := app.Open(r.path)
		c.MustInt("SELECT count(*) FROM t")
		for i := range 3 {
			for _, ckpt := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
				r.apply(p.tx("INSERT INTO t(b) VALUES (randomblob(9000))"))
				frames := r.WALPos().Frame
				row := c.MustQuery("PRAGMA wal_checkpoint(" + ckpt + ")")[0]
				refused := int64(1)
				if ckpt == "PASSIVE" {
					refused = 0
				}
				if want := fmt.Sprint([]any{refused, int64(frames), int64(frames)}); fmt.Sprint(row) != want {
					t.Errorf("%s: checkpoint %s says %v, want %v", mode, ckpt, row, want)
				}
				fi, err := os.Stat(r.path + "-wal")
				must(t, err)
				if fi.Size() < int64(frames)*4096 {
					t.Fatalf("%s: -wal has %d bytes after %s", mode, fi.Size(), ckpt)
				}
				r.check(p.img)
				for _, c := range []*sqlitetest.Conn{c, app.Open(r.path)} {
					if got := c.MustText("SELECT count(*) FROM t"); got != p.MustText("SELECT count(*) FROM t") {
						t.Fatalf("%s: round %d, after %s: reads %s rows", mode, i, ckpt, got)
					}
				}
			}
		}
		r.checkFile(p.img)
	}
}

// Demotion and promotion, again and again, on connections that stay open.
func TestRoleChangesOnOpenConnections(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			p := newPrimary(t, app, mode, 4096)
			r := newReplica(t, Options{})
			r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
			c, d := app.Open(r.path), app.Open(r.path)
			for i := range 5 {
				if n := d.MustInt("SELECT count(*) FROM t"); n != int64(i) {
					t.Fatalf("reads %d rows, want %d", n, i)
				}
				r.close()
				c.MustExec("INSERT INTO t(b) VALUES (zeroblob(5000))")
				p.tx("INSERT INTO t(b) VALUES (zeroblob(5000))")
				if n := d.MustInt("SELECT count(*) FROM t"); n != int64(i+1) {
					t.Fatalf("reads %d rows, want %d", n, i+1)
				}
				r.open()
				if _, err := c.Exec("INSERT INTO t(b) VALUES (1)"); !busy(err) {
					t.Fatalf("write on a replica: %v", err)
				}
			}
			x := p.tx("INSERT INTO t(b) VALUES (7)")
			// The local writes may have left other bytes than the primary's.
			x = diff(image{}, image{pageSize: x.PageSize, b: p.img.b})
			r.apply(x)
			r.check(p.img)
			if n := d.MustInt("SELECT b FROM t ORDER BY a DESC LIMIT 1"); n != 7 {
				t.Fatalf("reads %d, want 7", n)
			}
			c.Close()
			d.Close()
		})
	}
}

// A database in a rollback journal mode loses its WAL when nobody has it open,
// and keeps it while somebody has.
func TestCloseLeavesRollbackMode(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		p := newPrimary(t, app, mode, 4096)
		r := newReplica(t, Options{})
		r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
		c := app.Open(r.path)
		r.apply(p.tx("INSERT INTO t(b) VALUES (1)"))
		c.MustInt("SELECT count(*) FROM t")
		r.close()
		exists := func(want bool) {
			t.Helper()
			for _, suffix := range []string{"-wal", "-shm"} {
				if _, err := os.Stat(r.path + suffix); (err == nil) != want {
					t.Fatalf("%s: %s exists: %v, want %v", mode, suffix, err == nil, want)
				}
			}
		}
		exists(true)
		c.MustInt("SELECT count(*) FROM t")
		r.open()
		r.check(p.img)
		c.Close()
		exists(true)
		r.close()
		exists(mode == "wal")
		got := app.Open(r.path).MustText("PRAGMA journal_mode")
		if got != mode {
			t.Fatalf("journal mode %s, want %s", got, mode)
		}
	}
}

// A reader in rollback mode reads the database file itself: the WAL must not
// come into being under it.
func TestOpenWaitsForReadersInRollbackMode(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	r := newReplica(t, Options{})
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	r.close() // no connection is open: no WAL is left

	c, idle := app.Open(r.path), app.Open(r.path)
	idle.MustInt("SELECT count(*) FROM t")
	c.MustExec("BEGIN")
	c.MustInt("SELECT count(*) FROM t")
	if _, err := Open(impatient(t), r.opt); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("open beside a reader: %v", err)
	}
	if n := c.MustInt("SELECT count(*) FROM t"); n != 0 {
		t.Fatalf("reads %d rows", n)
	}
	c.MustExec("COMMIT")
	// The failed attempt left nothing behind that keeps a writer out.
	c.MustExec("BEGIN IMMEDIATE; ROLLBACK")

	r.open()
	c.MustExec("BEGIN")
	c.MustInt("SELECT count(*) FROM t")
	r.apply(p.tx("INSERT INTO t(b) VALUES (1)"))
	if n := c.MustInt("SELECT count(*) FROM t"); n != 0 {
		t.Fatalf("snapshot has %d rows", n)
	}
	if n := idle.MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Fatalf("connection from before reads %d rows, want 1", n)
	}
	if n := app.Open(r.path).MustInt("SELECT count(*) FROM t"); n != 1 {
		t.Fatalf("new connection reads %d rows, want 1", n)
	}
	c.MustExec("COMMIT")
}

func TestOpenWaitsForWriters(t *testing.T) {
	app := sqlitetest.Start(t)
	for _, mode := range []string{"delete", "wal"} {
		path := filepath.Join(t.TempDir(), "app.db")
		c := app.Open(path)
		c.MustQuery("PRAGMA journal_mode=" + mode)
		c.MustExec("CREATE TABLE t(a); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
		if _, err := Open(impatient(t), Options{Path: path}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%s: open beside a writer: %v", mode, err)
		}
		c.MustExec("COMMIT") // the attempt is not in its way
		p, err := Open(patient(t), Options{Path: path})
		must(t, err)
		if _, err := c.Exec("INSERT INTO t VALUES (2)"); !busy(err) {
			t.Fatalf("%s: %v", mode, err)
		}
		if n := c.MustInt("SELECT count(*) FROM t"); n != 1 {
			t.Fatalf("%s: reads %d rows, want 1", mode, n)
		}
		must(t, p.Close(patient(t)))
		c.MustExec("INSERT INTO t VALUES (2)")
		c.Close()
	}
}

func TestHotJournal(t *testing.T) {
	app := sqlitetest.Start(t)
	path := filepath.Join(t.TempDir(), "app.db")
	c := app.Open(path, "cache_size=1", "synchronous=off")
	c.MustExec("CREATE TABLE t(a); INSERT INTO t VALUES (zeroblob(100000))")
	c.MustExec("BEGIN; UPDATE t SET a = randomblob(100000)") // spills
	if _, err := Open(impatient(t), Options{Path: path}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("open beside a live journal: %v", err)
	}
	app.Kill()
	if _, err := Open(patient(t), Options{Path: path}); !errors.Is(err, ErrHotJournal) {
		t.Fatalf("open beside a hot journal: %v", err)
	}
	sqlitetest.CheckIntegrity(t, path) // plays it back
	p, err := Open(patient(t), Options{Path: path})
	must(t, err)
	must(t, p.Close(patient(t)))
}

func TestOpenRefusesWhatIsNoDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.txt")
	must(t, os.WriteFile(path, []byte("remember the milk"), 0o600))
	if _, err := Open(patient(t), Options{Path: path}); !errors.Is(err, sqlitefile.ErrNotDatabase) {
		t.Fatalf("open: %v", err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if _, err := os.Stat(path + suffix); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", suffix, err)
		}
	}
	if _, err := Open(patient(t), Options{Path: filepath.Join(path, "x")}); err == nil {
		t.Error("open below a file: no error")
	}
}

// Applications that run as another user must be able to use -wal and -shm.
func TestFilesHaveTheModeOfTheDatabase(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	r := newReplica(t, Options{})
	must(t, os.Chmod(r.path, 0o662))
	r.apply(p.tx("CREATE TABLE t(a)"))
	for _, suffix := range []string{"-wal", "-shm"} {
		fi, err := os.Stat(r.path + suffix)
		must(t, err)
		if fi.Mode().Perm() != 0o662 {
			t.Errorf("%s has mode %v", suffix, fi.Mode().Perm())
		}
	}
}

func TestClosedPeer(t *testing.T) {
	app := sqlitetest.Start(t)
	x := newPrimary(t, app, "delete", 4096).tx("CREATE TABLE t(a)")
	r := newReplica(t, Options{})
	r.apply(x)
	r.close()
	r.close()
	_, ckpt := r.Checkpoint(patient(t))
	for name, err := range map[string]error{
		"apply":      r.Apply(patient(t), x.Count, x.PageSize, x.pages),
		"checkpoint": ckpt,
		"sync":       r.Sync(),
		"read":       r.ReadPage(1, make([]byte, 4096)),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}

// What needs no lock is asked from the file outside the mount, when it is the
// same file.
func TestBackingFile(t *testing.T) {
	app := sqlitetest.Start(t)
	p := newPrimary(t, app, "delete", 4096)
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dir, link))
	r := &replica{t: t, path: filepath.Join(dir, "app.db")}
	r.opt = Options{Path: r.path, Backing: filepath.Join(link, "app.db")}
	r.open()
	r.apply(p.tx("CREATE TABLE t(a INTEGER PRIMARY KEY, b)"))
	r.apply(p.tx("INSERT INTO t(b) VALUES (1)"))
	r.close()
	r.open()
	r.check(p.img)
	r.checkFile(p.img)
	r.close()

	must(t, os.WriteFile(filepath.Join(dir, "other.db"), nil, 0o600))
	_, err := Open(patient(t), Options{Path: r.path, Backing: filepath.Join(dir, "other.db")})
	if err == nil {
		t.Fatal("another file behind the mount: no error")
	}
	sqlitetest.CheckIntegrity(t, r.path)
}
