package litefs

import (
	"os"
	"path/filepath"
	"testing"
)

// A note of a lease is for the directory that it was written in, and not for a copy.
func TestFormerLease(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	if got, err := FormerLease(dir); err != nil || got != "" {
		t.Errorf("before the first: %q, %v", got, err)
	}
	for _, name := range []string{"first", "second"} {
		if err := RememberLease(dir, name); err != nil {
			t.Fatal(err)
		}
		if got, err := FormerLease(dir); err != nil || got != name {
			t.Errorf("got %q, %v, want %q", got, err, name)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, leaseFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{b, nil, []byte("x"), []byte("x\ny")} {
		if err := os.WriteFile(filepath.Join(other, leaseFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := FormerLease(other); err != nil || got != "" {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}
