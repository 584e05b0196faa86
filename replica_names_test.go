package litefs

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRenameTogether: when one of the files cannot be renamed, none is.
func TestRenameTogether(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db")
	for _, sfx := range databaseFiles {
		if err := os.WriteFile(from+sfx, []byte(sfx), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A directory in the way refuses the last rename.
	if err := os.Mkdir(to+"-shm", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := renameTogether(from, to); err == nil {
		t.Fatal("a file was renamed over a directory")
	}
	for _, sfx := range databaseFiles {
		if b, err := os.ReadFile(from + sfx); err != nil || string(b) != sfx {
			t.Errorf("from.db%s: %q, %v", sfx, b, err)
		}
	}
	if _, err := os.Stat(to); err == nil {
		t.Error("to.db is there")
	}
	if err := os.Remove(to + "-shm"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(from + "-wal"); err != nil {
		t.Fatal(err)
	}
	if err := renameTogether(from, to); err != nil {
		t.Fatal(err)
	}
	for sfx, want := range map[string]bool{"": true, "-wal": false, "-shm": true} {
		if _, err := os.Stat(to + sfx); (err == nil) != want {
			t.Errorf("to.db%s: %v", sfx, err)
		}
	}
}

// TestRenameBeforeTheFirstTransaction: a database that is known here by its record alone, because the connection broke
// before its first transaction came, is renamed as any other.
func TestRenameBeforeTheFirstTransaction(t *testing.T) {
	n := openNode(t, filepath.Join(t.TempDir(), "data"), asReplica)
	if _, err := n.store.ForceCreateDB(7, "dir/a.db"); err != nil {
		t.Fatal(err)
	}
	db, err := n.store.introduce(t.Context(), 7, "other/b.db")
	if err != nil {
		t.Fatal(err)
	}
	if db.Name() != "other/b.db" || n.store.DBByName("dir/a.db") != nil || n.store.DBByName("other/b.db") != db {
		t.Errorf("it is %s", db.Name())
	}
}
