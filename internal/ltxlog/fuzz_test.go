package ltxlog

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/seal"
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

// edited is b cut at a byte, or not, with patch written over it at another one: near what is valid, whatever the key is.
func edited(b []byte, cut, at uint32, patch []byte) []byte {
	b = bytes.Clone(b[:len(b)-int(cut)%(len(b)+1)])
	if n := int(at) % (len(b) + 1); len(patch) > 0 {
		b = append(b[:n:n], append(bytes.Clone(patch), b[min(n+len(patch), len(b)):]...)...)
	}
	return b
}

// FuzzSealed: of the bytes of an encrypted entry nothing is believed but those that were written. Whatever else lies there is
// corrupt, for who opens the log, and for who finds it as a copy; without the key what was written is encrypted, and the rest at
// most an entry in the clear.
func FuzzSealed(f *testing.F) {
	key, err := seal.NewDataKey()
	if err != nil {
		f.Fatal(err)
	}
	m := newModel(1, 512)
	first, second, third := m.next(), m.next(), m.noise(140) // of two parts, and of three
	f.Add(false, uint32(0), uint32(0), []byte{})
	f.Add(true, uint32(0), uint32(0), []byte{})
	f.Add(true, uint32(1), uint32(0), []byte{})
	f.Add(false, uint32(seal.SealedSize(int64(len(second.bytes())))), uint32(0), second.bytes()) // all of it, in the clear
	f.Add(false, uint32(20), uint32(9), []byte{0})
	f.Fuzz(func(t *testing.T, large bool, cut, at uint32, patch []byte) {
		disk, opt := vfs.NewMem(), Options{Sealing: &Sealing{Key: key}}
		opt.FS = disk
		l, err := Open(memDir, opt)
		if err != nil {
			t.Fatal(err)
		}
		changes := []change{first, second, third}
		if !large {
			changes = changes[:2]
		}
		for _, c := range changes {
			if _, err := l.Append(c.h, c.emit, c.post, false); err != nil {
				t.Fatal(err)
			}
		}
		want := l.Entries()
		last := want[len(want)-1]
		good := fileOf(t, disk, l.entryPath(last))
		b := edited(good, cut, at, patch)
		same := bytes.Equal(b, good)
		if e, err := l.decodeStored(b, last.Max); same != (err == nil && e == last) || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("a copy, the same %t: %v, %v", same, e, err)
		}
		plain := Log{form: plainForm{}, buffers: &Buffers{}}
		_, err = plain.decodeStored(b, last.Max)
		if same && !errors.Is(err, ErrSealed) || err != nil && !errors.Is(err, ErrSealed) && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("without the key, the same %t: %v", same, err)
		}
		rewrite(t, disk, last, func([]byte) []byte { return b })
		if !same {
			want = want[:len(want)-1]
		}
		l = open(t, memDir, opt)
		if got := l.Entries(); !slices.Equal(got, want) {
			t.Fatalf("the same %t: found %v, want %v", same, got, want)
		}
		checkChain(t, l)
	})
}

// FuzzPack: bytes of any kind in a pack. What is listed is what was written, and can be read, unless it was durable and is
// damaged in the middle, which is found out when it is read. What was durable is listed, or the log is broken.
func FuzzPack(f *testing.F) {
	f.Add(uint8(0), uint32(0), uint32(0), []byte{})
	f.Add(uint8(3), uint32(30), uint32(0), []byte{})
	f.Add(uint8(5), uint32(0), uint32(8200), []byte{1, 2, 3})
	f.Add(uint8(0), uint32(0), uint32(40000), make([]byte, 9000))
	f.Fuzz(func(t *testing.T, durable uint8, cut, at uint32, patch []byte) {
		disk, m := vfs.NewMem(), newModel(3, 512)
		l, err := Open(memDir, bigPack(disk))
		if err != nil {
			t.Fatal(err)
		}
		for n := range 8 {
			m.append(t, l, n == int(durable)%8)
		}
		want, synced := l.Entries(), l.Durable()
		rewriteFile(t, disk, packName(1), func(b []byte) []byte { return edited(b, cut, at, patch) })
		l, err = Open(memDir, bigPack(disk))
		if errors.Is(err, ErrBroken) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		got := l.Entries()
		if len(got) > len(want) {
			t.Fatalf("found %v, want %v", got, want)
		}
		for i, e := range got {
			err := l.Verify(e)
			bad := errors.Is(err, ErrCorrupt) && e.Max <= synced && i < len(got)-1
			if !bad && (err != nil || e != want[i]) {
				t.Fatalf("found %v, want %v (durable up to %d): %v", e, want[i], synced, err)
			}
		}
		lost := slices.ContainsFunc(l.Dropped(), func(d Dropped) bool { return d.Durable })
		if last := lastOf(l); last < synced && !lost {
			t.Fatalf("found up to %d, durable up to %d", last, synced)
		}
	})
}
