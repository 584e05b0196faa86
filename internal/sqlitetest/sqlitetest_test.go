package sqlitetest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlapp"
	"github.com/litefs/litefs/internal/sqlitetest"
)

func TestMain(m *testing.M) { sqlitetest.Main(m) }

func TestTwoApplicationsAndTheCommandLineShareADatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	app := sqlitetest.Start(t)
	w := app.Open(path, "journal_mode=wal")
	w.MustExec("CREATE TABLE t(a)")
	w.MustExec("BEGIN IMMEDIATE")
	w.MustExec("INSERT INTO t VALUES (1)")
	other := sqlitetest.Open(t, path)
	if _, err := other.Exec("INSERT INTO t VALUES (2)"); !sqlapp.IsCode(err, sqlapp.CodeBusy) {
		t.Errorf("second writer: %v, want busy", err)
	}
	if n := other.MustInt("SELECT count(*) FROM t"); n != 0 {
		t.Errorf("reader sees %d uncommitted rows", n)
	}
	w.MustExec("COMMIT")
	if got := strings.TrimSpace(sqlitetest.CLI(t, path, "SELECT a FROM t;")); got != "1" {
		t.Errorf("sqlite3 printed %q, want 1", got)
	}
	app.Exit()
	sqlitetest.CheckIntegrity(t, path)
	if mode := other.MustText("PRAGMA journal_mode"); mode != "wal" {
		t.Errorf("journal mode %s, want wal", mode)
	}
}

func TestPersistWALKeepsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	app := sqlitetest.Start(t)
	c := app.Open(path, "journal_mode=wal")
	c.PersistWAL(true)
	c.MustExec("CREATE TABLE t(a)")
	c.Close()
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Errorf("-wal after the last close: %v", err)
	}
	app.Kill()
}

func TestCommandLineReportsItsErrors(t *testing.T) {
	_, err := sqlitetest.TryCLI(filepath.Join(t.TempDir(), "app.db"), "SELECT nonsense;")
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v, want one that names the column", err)
	}
}
