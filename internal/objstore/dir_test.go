package objstore_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/objstore"
	"github.com/litefs/litefs/internal/objstore/objtest"
)

func TestDir(t *testing.T) {
	objtest.Run(t, func(t *testing.T) objstore.Store {
		root := filepath.Join(t.TempDir(), "deep", "er")
		d, err := objstore.OpenDir(root)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { noneHalf(t, root) })
		return d
	})
}

// noneHalf fails when a file that was being written is left.
func noneHalf(t *testing.T, root string) {
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if strings.HasPrefix(e.Name(), ".tmp-") && e.Name() != ".tmp-lock" {
			t.Errorf("%s is left", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDirLeftovers: what a crash leaves of a put is no object.
func TestDirLeftovers(t *testing.T) {
	root := t.TempDir()
	d, err := objstore.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.PutIfAbsent(t.Context(), "a/whole", strings.NewReader("1"), objstore.Attrs{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "a", ".tmp-123"), []byte("ha"), 0o600); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for info, err := range d.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	if len(keys) != 1 || keys[0] != "a/whole" {
		t.Errorf("listed %q, want a/whole alone", keys)
	}
}
