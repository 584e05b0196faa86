package ltxlog

import (
	"bytes"
	"errors"
	"testing"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/vfs"
)

func FuzzEntryName(f *testing.F) {
	f.Add("0000000000000001-0000000000000001.ltx")
	f.Add("0000000000000002-00000000000000ff.ltx")
	f.Add("8000000000000000-8000000000000000.ltx")
	f.Add("0000000000000001-0000000000000001.ltx.tmp")
	f.Fuzz(func(t *testing.T, name string) {
		lo, hi, ok := parseEntryName(name)
		if !ok {
			return
		}
		if lo == 0 || lo > hi || hi > MaxTXID || entryName(lo, hi) != name || isTempName(name) {
			t.Fatalf("%q is taken for %d to %d", name, lo, hi)
		}
	})
}

// FuzzImport: whatever a peer sends, the log lists nothing that it cannot read back, and nothing that
// the library would not read.
func FuzzImport(f *testing.F) {
	m := newModel(1, 512)
	first := m.next()
	second := m.next()
	for _, c := range []change{first, second, m.next()} {
		f.Add(c.bytes())
	}
	f.Add([]byte(ltx.Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Open(memDir, Options{FS: vfs.NewMem(), spillSize: 4096})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(first.h, first.emit, first.post, false); err != nil {
			t.Fatal(err)
		}
		e, err := l.Import(bytes.NewReader(b), int64(len(b)), false)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMismatch) {
				t.Fatal(err)
			}
			if got := l.Entries(); len(got) != 1 {
				t.Fatalf("refused (%v), but the log has %v", err, got)
			}
			return
		}
		checkChain(t, l)
		if err := ltx.NewDecoder(bytes.NewReader(b)).Verify(); err != nil {
			t.Fatalf("the library refuses what was imported: %v", err)
		}
		var pgnos []uint32
		if err := l.Pages(e, func(pgno uint32, data []byte) error { pgnos = append(pgnos, pgno); return nil }); err != nil {
			t.Fatal(err)
		}
		for _, pgno := range pgnos {
			if _, ok, err := l.Page(e, pgno); err != nil || !ok {
				t.Fatalf("page %d by the index: %v, %v", pgno, ok, err)
			}
		}
	})
}

// FuzzOpen: bytes of any kind under the name of an entry. Open must say broken or drop, never list
// what it cannot read.
func FuzzOpen(f *testing.F) {
	m := newModel(1, 512)
	first, second := m.next(), m.next()
	f.Add(second.bytes(), uint64(12))
	f.Add(second.bytes()[:90], uint64(0))
	f.Add([]byte{}, uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, durable uint64) {
		disk := vfs.NewMem()
		l, err := Open(memDir, Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(first.h, first.emit, first.post, false); err != nil {
			t.Fatal(err)
		}
		if err := l.writeFile(entryName(second.h.Min, second.h.Max), b, false); err != nil {
			t.Fatal(err)
		}
		l.mu.synced = durable
		l.writeMark()
		l, err = Open(memDir, Options{FS: disk})
		if errors.Is(err, ErrBroken) {
			l, err = Open(memDir, Options{FS: disk, Repair: true})
		}
		if err != nil {
			t.Fatal(err)
		}
		checkChain(t, l)
		goOnFuzz(t, l)
	})
}

func goOnFuzz(t *testing.T, l *Log) {
	t.Helper()
	if head, ok := l.Head(); !ok || head.Min == 0 {
		t.Fatal("the entry before was lost")
	}
	goOn(t, l)
}
