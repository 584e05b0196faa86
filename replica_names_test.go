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
