package fuse

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadWrite(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		m := newMount(t, mode)
		a := startApp(t, 0)
		fd := a.open(m.Path("f"), unix.O_CREAT|unix.O_RDWR)
		a.pwrite(fd, 0, "hello")
		if got := string(a.pread(fd, 0, 10)); got != "hello" {
			t.Errorf("read %q", got)
		}
		b, err := os.ReadFile(filepath.Join(m.root, "f"))
		if err != nil || string(b) != "hello" {
			t.Errorf("backing file: %q, %v", b, err)
		}
		a.close(fd)
		a.stop()
		t.Log(m.Counts(), m.back.take(), m.log.String())
	})
}

func TestSQLite(t *testing.T) {
	inModes(t, func(t *testing.T, mode Mode) {
		for _, journal := range []string{"WAL", "DELETE", "TRUNCATE", "PERSIST"} {
			t.Run(journal, func(t *testing.T) {
				m := newMount(t, mode)
				a := startApp(t, 0)
				a.do(appRequest{Op: "sqlite", Path: m.Path("app.db")})
				a.query("PRAGMA journal_mode=" + journal)
				a.exec("CREATE TABLE t (x)")
				a.do(appRequest{Op: "execn", SQL: "INSERT INTO t VALUES (randomblob(2000))", Len: 50})
				b := startApp(t, 0)
				b.do(appRequest{Op: "sqlite", Path: m.Path("app.db")})
				if got := b.query("SELECT count(*) FROM t"); got != "50" {
					t.Errorf("count %s", got)
				}
				b.exec("DELETE FROM t WHERE rowid % 2")
				if got := a.query("PRAGMA integrity_check"); got != "ok" {
					t.Errorf("integrity: %s", got)
				}
				if got := a.query("SELECT count(*) FROM t"); got != "25" {
					t.Errorf("count %s", got)
				}
				a.stop()
				b.stop()
			})
		}
	})
}
