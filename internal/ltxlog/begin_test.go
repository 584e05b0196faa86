package ltxlog

import (
	"errors"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// A log that begins at a position takes the entry that follows it and no other, also when it is opened
// again, and whatever it held before is gone.
func TestBegin(t *testing.T) {
	for _, old := range []int{0, 5} {
		disk := vfs.NewMem()
		l := open(t, memDir, Options{FS: disk})
		other := newModel(1, 4096)
		for range old {
			other.append(t, l, false)
		}
		m := newModel(2, 4096)
		source := open(t, "/source", Options{FS: vfs.NewMem()})
		for range 10 {
			m.append(t, source, false)
		}
		head, _ := source.Head()
		next := m.next()
		h := next.h
		h.Min, h.Max, h.Commit = head.Max, head.Max, head.Commit
		for _, bad := range []uint64{0, 1, head.Max + 1} {
			wrong := h
			wrong.Min = bad
			if _, err := l.Begin(wrong); err == nil {
				t.Errorf("began at %d to %d", wrong.Min, wrong.Max)
			}
		}
		e, err := l.Begin(h)
		if err != nil {
			t.Fatal(err)
		}
		if e.Pre != head.Post || e.Post != head.Post || e.Max != head.Max {
			t.Fatalf("begins with %+v, want the position %d, %016x", e, head.Max, head.Post)
		}
		wrong := next.h
		wrong.Pre ^= 1
		var mismatch *MismatchError
		if _, err := l.Append(wrong, next.emit, next.post, false); !errors.As(err, &mismatch) {
			t.Fatalf("an entry of another history: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, memDir, Options{FS: disk})
		if list := l.Entries(); len(list) != 1 || list[0] != e || l.Durable() != e.Max || len(l.Dropped()) > 0 {
			t.Fatalf("after reopening %+v, durable %d, dropped %v", list, l.Durable(), l.Dropped())
		}
		if err := l.Pages(e, func(uint32, []byte) error { return errors.New("it has a page") }); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(next.h, next.emit, next.post, true); err != nil {
			t.Fatal(err)
		}
		checkChain(t, l)
	}
}
