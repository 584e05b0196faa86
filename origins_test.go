package litefs

import (
	"os"
	"path/filepath"
	"testing"
)

// Which node wrote an epoch is still known after a restart, and a torn line costs nothing but itself.
func TestReigns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reigns")
	var r reigns
	if err := r.open(path); err != nil {
		t.Fatal(err)
	}
	for _, e := range []reign{{3, "c"}, {1, "a"}, {2, "b"}, {1, "a"}, {4, ""}, {0, "x"}} {
		if err := r.note(e.epoch, e.node); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "1 a\n2 b\n3 c\n" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := os.WriteFile(path, append(b, "4 "...), 0o600); err != nil {
		t.Fatal(err)
	}
	var again reigns
	if err := again.open(path); err != nil {
		t.Fatal(err)
	}
	for epoch, want := range map[uint64]string{0: "", 1: "a", 2: "b", 3: "c", 4: ""} {
		if got := again.origin(epoch); got != want {
			t.Errorf("epoch %d: %q, want %q", epoch, got, want)
		}
	}
}
