package ltxlog

import (
	"bytes"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// The newest entries are in memory as they are in their files, as far as they are few and listed.
func TestLive(t *testing.T) {
	l := open(t, memDir, Options{FS: vfs.NewMem()})
	m := newModel(1, 4096)
	for range 300 {
		m.append(t, l, false)
	}
	total, found := 0, 0
	for _, e := range l.Entries() {
		b, ok := l.Live(e)
		if !ok {
			if found > 0 {
				t.Fatalf("%d-%d is not in memory, one before it is", e.Min, e.Max)
			}
			continue
		}
		if found++; !bytes.Equal(b, read(t, l, e)) {
			t.Fatalf("%d-%d is another in memory", e.Min, e.Max)
		}
		total += len(b)
	}
	head, _ := l.Head()
	if found == 0 || total > maxLive {
		t.Fatalf("%d entries in memory with %d bytes, at most %d are allowed", found, total, maxLive)
	}
	changed := head
	changed.Post ^= 1
	if _, ok := l.Live(changed); ok {
		t.Error("an entry of another history is found")
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Live(head); !ok {
		t.Error("the newest entry is gone at the first sync")
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Live(head); ok || l.live.bytes != 0 {
		t.Errorf("%d bytes are still there at the second sync", l.live.bytes)
	}
	m.append(t, l, false)
	head, _ = l.Head()
	if err := l.TruncateAfter(head.Min - 1); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Live(head); ok {
		t.Error("an entry that was dropped is found")
	}
}
