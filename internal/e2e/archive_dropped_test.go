package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/sqlitetest"
)

// TestArchiveDropped: when a database is removed the archive says so, and gives the last moment before it to those
// who ask for that. When it is made again, its newest state is what is restored.
func TestArchiveDropped(t *testing.T) {
	t.Parallel()
	place := archiveDir(t)
	n := newNode(t)
	n.args = append(place.set, "-set", "backup.interval=20ms", "-set", "backup.max-requests=1000")
	n.start()
	make := func(sql string) mark {
		t.Helper()
		app := sqlitetest.Start(t)
		defer app.Exit()
		c := app.Open(n.path("app.db"), "journal_mode=DELETE")
		c.MustExec("CREATE TABLE t(v)")
		c.MustExec(sql)
		settle(c)
		return place.archived(n, "app.db")
	}
	first := make("INSERT INTO t VALUES (randomblob(5000))")
	if err := os.Remove(n.path("app.db")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the archive knows of the drop", func() (bool, string) {
		all, err := place.histories("app.db")
		return err == nil && len(all) == 1 && all[0].Dropped != "", fmt.Sprintf("%+v, %v", all, err)
	})
	out, err := place.run(binary(t), append([]string{"restore", "-name", "app.db"}, append(place.from, filepath.Join(t.TempDir(), "restored.db"))...)...)
	moment := out[strings.LastIndexByte(out, ' ')+1:]
	if err == nil || !strings.Contains(out, "app.db was dropped at ") || !strings.Contains(out, "restore it with -moment "+moment) {
		t.Fatalf("restore of a dropped database: %v: %s", err, out)
	}
	place.restored(first, "app.db", "-moment", moment)
	if out, err := place.run(binary(t), append([]string{"history"}, place.from...)...); err != nil || !strings.Contains(out, "dropped 20") {
		t.Errorf("history: %v: %s", err, out)
	}
	second := make("INSERT INTO t VALUES (1)")
	place.restored(second, "app.db")
	place.restored(first, "app.db", "-history", "1", "-moment", moment)
	n.stop()
}
