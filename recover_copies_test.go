package litefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// Entries that a power cut has left as copies alone, in the file that all databases share, come back into the log of each.
// A database whose record is set aside at that start gets them at a later one.
func TestRecoverFromCopies(t *testing.T) {
	t.Run("in the clear", func(t *testing.T) { recoverFromCopies(t, nil) })
	t.Run("encrypted", func(t *testing.T) { recoverFromCopies(t, someKeys(t)) })
}

func recoverFromCopies(t *testing.T, keys *logkey.Keys) {
	n := mountNode(t, filepath.Join(t.TempDir(), "data"), false, withLogKeys(keys))
	names := []string{"a.db", "b.db", "c.db"}
	want := make(map[string]Pos)
	for _, name := range names {
		c := sqlitetest.Open(t, n.app(name), "journal_mode=delete")
		c.MustExec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
		for range 20 {
			c.MustExec("INSERT INTO t(v) VALUES (randomblob(100))")
		}
		c.Close()
		want[name] = n.db(name).Pos()
	}
	dir := n.crash()
	ids := make(map[string]string)
	for _, name := range names {
		ids[name] = FormatDBID(n.db(name).ID())
		logDir := filepath.Join(dir, "dbs", ids[name], "ltx")
		for txid := want[name].TXID - 2; txid <= want[name].TXID; txid++ {
			removeFile(t, filepath.Join(logDir, fmt.Sprintf("%016x-%016x.ltx", txid, txid)))
		}
		// What is durable for certain is not lost.
		if err := os.Remove(filepath.Join(logDir, "durable")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	// The name of one cannot be read at the first start.
	name := filepath.Join(dir, "dbs", ids["c.db"], "name")
	aside := filepath.Join(t.TempDir(), "name")
	if err := os.Rename(name, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(name, 0o700); err != nil {
		t.Fatal(err)
	}
	again, err := tryOpenNode(t, dir, onBoot(boot2), withLogKeys(keys))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names[:2] {
		if got := again.store.DBByName(name).Pos(); got != want[name] {
			t.Errorf("%s is at %s, want %s", name, got, want[name])
		}
	}
	again.close()
	kept := filepath.Join(dir, "dbs", ids["c.db"], "ltx", "recent")
	if moved, err := filepath.Glob(filepath.Join(dir, "aside", "*", "ltx", "recent")); err != nil {
		t.Fatal(err)
	} else if _, err := os.Stat(kept); err != nil && len(moved) == 0 {
		t.Errorf("the copies of the database that was set aside are gone: %v", err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "recent")); err != nil || fi.Size() == 0 {
		t.Errorf("no database used the shared file: %v", err)
	}
}
