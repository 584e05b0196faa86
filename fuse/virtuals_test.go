package fuse

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// TestVirtualListed: synthetic files appear once in a listing, after the real ones, and a name of theirs that was missing
// is found as soon as it is there.
func TestVirtualListed(t *testing.T) {
	m := newMount(t, Cached)
	for i := range 2000 {
		if err := os.WriteFile(m.Path(fmt.Sprintf("file%04d", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.ReadFile(m.Path("a-pos")); !os.IsNotExist(err) {
		t.Fatalf("got %v, want not found", err)
	}
	m.back.set(func() {
		m.back.virtual = func(path string) ([]byte, bool) { return []byte("1\n"), path == "a-pos" }
		m.back.listed = []string{"a-pos", ".primary"}
	})
	if b, err := os.ReadFile(m.Path("a-pos")); err != nil || string(b) != "1\n" {
		t.Fatalf("got %q, %v", b, err)
	}
	ents, err := os.ReadDir(m.Path(""))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range ents {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	if len(names) != 2002 || !slices.Contains(names, "a-pos") || !slices.Contains(names, ".primary") || len(slices.Compact(names)) != 2002 {
		t.Fatalf("listed %d names", len(names))
	}
}
