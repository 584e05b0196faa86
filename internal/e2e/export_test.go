package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// litefs runs the command and returns what it printed, on both streams.
func litefs(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(timeout(t), binary(t), args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// TestExportAndWait: a follower is waited for, and a copy from either node is the database.
func TestExportAndWait(t *testing.T) {
	primary := startNode(t)
	follower := startNode(t, follows(primary))
	app := sqlitetest.Start(t)
	for name, pragma := range map[string]string{"app.db": "journal_mode=WAL", "dir/old.db": "journal_mode=DELETE"} {
		if err := os.MkdirAll(filepath.Dir(primary.path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		c := openPatient(app, primary.path(name), pragma)
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		for range 20 {
			c.MustExec("INSERT INTO t(v) VALUES (randomblob(3000))")
		}
		want := c.MustText("SELECT group_concat(hex(v)) FROM t")

		// The position counts what was committed a moment ago.
		url, followerURL := "http://"+primary.cfg.Addr, "http://"+follower.cfg.Addr
		pos, err := litefs(t, "wait", "-url", url, name, "0000000000000001")
		if err != nil {
			t.Fatal(pos)
		}
		if out, err := litefs(t, "wait", "-url", followerURL, "-timeout", "90s", name, pos); err != nil || out != pos {
			t.Errorf("wait for %s: %s, %v", pos, out, err)
		}
		copied := filepath.Join(t.TempDir(), "copy.db")
		for i, from := range []string{url, followerURL} {
			if i == 1 { // replaces the first
				sqlitetest.CLI(t, copied, "DELETE FROM t;")
			}
			if out, err := litefs(t, "export", "-url", from, "-name", name, copied); err != nil || !strings.Contains(out, pos) {
				t.Fatalf("export from %s: %s, %v; want %s", from, out, err, pos)
			}
			sqlitetest.CheckIntegrity(t, copied)
			if got := strings.TrimSpace(sqlitetest.CLI(t, copied, "SELECT group_concat(hex(v)) FROM t;")); got != want {
				t.Errorf("%s exported from %s is another database", name, from)
			}
		}

		// What fails leaves the file alone, and nothing beside it.
		before, err := os.ReadFile(copied)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := litefs(t, "export", "-url", url, "-name", "none.db", copied); err == nil || !strings.Contains(out, "no database has that name") {
			t.Errorf("export of no database: %s, %v", out, err)
		}
		if err := os.WriteFile(copied+"-wal", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := litefs(t, "export", "-url", url, "-name", name, copied); err == nil || !strings.Contains(out, "may be in use") {
			t.Errorf("export over a database in use: %s, %v", out, err)
		}
		after, err := os.ReadFile(copied)
		if err != nil || string(after) != string(before) {
			t.Errorf("a failed export has changed the file (%v)", err)
		}
		if entries, err := os.ReadDir(filepath.Dir(copied)); err != nil || len(entries) != 2 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
		if out, err := litefs(t, "wait", "-url", url, "-timeout", "10ms", name, "00000000ffffffff"); err == nil || !strings.Contains(out, "not at 00000000ffffffff yet") {
			t.Errorf("wait in vain: %s, %v", out, err)
		}
	}
}
