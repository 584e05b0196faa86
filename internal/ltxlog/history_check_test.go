package ltxlog

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"testing"

	"github.com/litefs/litefs/internal/vfs"
)

// check holds a log that was opened against what it must be.
func (h *history) check(l *Log, atLeast uint64) {
	h.t.Helper()
	checkChain(h.t, l)
	if last := lastOf(l); last < atLeast {
		h.t.Fatalf("found up to %d, want %d; dropped %v", last, atLeast, l.Dropped())
	}
	for _, d := range l.Dropped() {
		if d.Durable {
			h.t.Fatalf("dropped %d to %d, which was durable: %v", d.Min, d.Max, d.Err)
		}
	}
	for _, e := range l.Entries() {
		mayBe := e.Min > atLeast && h.unsure[state{e.Max, e.Post}]
		if want := h.m.current[e.Max]; e.Post != want && !mayBe {
			h.t.Fatalf("found %d with checksum %016x, which was dropped; want %016x (durable %d)", e.Max, e.Post, want, atLeast)
		}
	}
	h.m.checkPages(h.t, l)
}

// checkPages: each entry makes of the database before it the one after it.
func (m *model) checkPages(t *testing.T, l *Log) {
	t.Helper()
	for _, e := range l.Entries() {
		before, known := m.history[state{e.Min - 1, e.Pre}]
		if !known && !e.IsSnapshot() {
			t.Fatalf("%d follows a state that never was", e.Min)
		}
		got := make([]byte, int(e.Commit)*int(m.pageSize))
		copy(got, before)
		err := l.Pages(e, func(pgno uint32, data []byte) error {
			copy(got[int(pgno-1)*int(m.pageSize):], data)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if want, known := m.history[state{e.Max, e.Post}]; !known || !bytes.Equal(got, want) {
			t.Fatalf("%d to %d do not make the database that was", e.Min, e.Max)
		}
	}
}

// checkDisk opens and uses the log that is left on a disk.
func (h *history) checkDisk(disk *vfs.Mem, atLeast uint64) {
	h.t.Helper()
	open := func() *Log {
		l, err := h.open(disk, false)
		if err != nil {
			h.t.Fatal(err)
		}
		return l
	}
	l := open()
	h.check(l, atLeast)
	checkNothingElse(h.t, disk, l)
	checkGoesOn(h.t, l, open)
}

// checkCuts looks at what power cuts would have left while something was being done: the states before and after may be
// found.
func (h *history) checkCuts(atLeast uint64, states ...map[uint64]uint64) {
	h.t.Helper()
	was := maps.Clone(h.unsure)
	for _, current := range states {
		h.mayFind(current)
	}
	for _, cut := range h.disk.cuts {
		h.checkDisk(cut, atLeast)
	}
	h.disk.cuts, h.unsure = nil, was
}

// checkNothingElse: a log that was opened has no file that it does not need.
func checkNothingElse(t *testing.T, disk *vfs.Mem, l *Log) {
	t.Helper()
	checkFiles(t, disk, l)
	for _, name := range listing(t, disk) {
		if isTempName(name) || name == recentName {
			t.Fatalf("%s is left", name)
		}
	}
	if info, err := disk.Stat(memRecent); err == nil && l.recent != nil && info.Size() > l.recent.size {
		t.Fatalf("the file of recent entries has %d bytes", info.Size())
	}
}

// halfRead is an entry of which somebody has read a half.
type halfRead struct {
	e    Entry
	want []byte
	at   int
	r    io.ReadCloser
}

// finishReaders has all who read go on to the end.
func (h *history) finishReaders() {
	h.t.Helper()
	h.disk.whole = !h.disk.stopped()
	defer func() { h.disk.whole = false }()
	for _, r := range h.readers {
		b, err := io.ReadAll(r.r)
		switch err = errors.Join(err, r.r.Close()); {
		case err != nil && (h.disk.stopped() || h.disk.lost):
		case err != nil:
			h.t.Fatalf("read on %d to %d: %v", r.e.Min, r.e.Max, err)
		case !bytes.Equal(b, r.want[r.at:]) && !h.disk.lost:
			h.t.Fatalf("read on %d to %d: other bytes", r.e.Min, r.e.Max)
		}
	}
	h.readers = nil
}
