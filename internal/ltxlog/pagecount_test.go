package ltxlog

import (
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// The count is that of the pages, for entries in memory and for those on disk.
func TestPageCount(t *testing.T) {
	m := newModel(3, 1024)
	l := open(t, memDir, Options{FS: vfs.NewMem()})
	for range 30 {
		c := m.next()
		e, err := l.Append(c.h, c.emit, c.post, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, where := range []string{"memory", "disk"} {
			if n, err := l.PageCount(e); err != nil || int(n) != len(c.pages) {
				t.Fatalf("%d pages of %d in %s, want %d: %v", n, e.Max, where, len(c.pages), err)
			}
			l.live.age()
			l.live.age()
		}
	}
}
