package catalog

import (
	"strings"
	"testing"

	"github.com/litefs/litefs/internal/objstore"
)

// TestFolders: the folder of a database is a key of every store, and gives the name back.
func TestFolders(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{
		"app.db", "dir/app.db", "a%b", "a%25b", "new\nline", "\xff\xfe", "ümlaut/データ.db", "history-00000001", "history-00000001/x",
		"%68istory-00000001", ".tmp-1", "x/.tmp-1", "with space", "\x7f", "tab\tname",
	} {
		folder := Of(name)
		key := strings.TrimSuffix(folder, "/")
		if err := objstore.CheckKey(key); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if got := nameOf(key); got != name {
			t.Errorf("%q is %q in the store, and %q again", name, key, got)
		}
		for part := range strings.SplitSeq(key, "/") {
			if _, ok := Number(part); ok {
				t.Errorf("%q: %q would be taken for a history", name, part)
			}
		}
		if other, twice := seen[key]; twice {
			t.Errorf("%q and %q are both %q", name, other, key)
		}
		seen[key] = name
	}
	for name, want := range map[string]uint64{"history-00000001": 1, "history-123456789": 123456789, "history-1": 0, "history-00000000": 0, "history-000000001": 0, "xhistory-00000001": 0} {
		if n, ok := Number(name); n != want && ok || ok != (want > 0) {
			t.Errorf("%s: %d, %v", name, n, ok)
		}
	}
}
