package ltxlog

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/vfs"
)

var pageSizes = []uint32{512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}

func TestAppendReplay(t *testing.T) {
	for i, pageSize := range pageSizes {
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			m := newModel(uint64(i), pageSize)
			disk := vfs.NewMem()
			l := open(t, memDir, Options{FS: disk})
			var ends []uint64
			for n := range 40 {
				ends = append(ends, m.append(t, l, n%7 == 0).Max)
			}
			checkChain(t, l)
			for _, txid := range ends[len(ends)-4:] {
				m.checkReplay(t, l, txid)
			}
			want := l.Entries()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, memDir, Options{FS: disk})
			if got := l.Entries(); !reflect.DeepEqual(got, want) {
				t.Fatalf("entries after reopening: %v, want %v", got, want)
			}
			if len(l.Dropped()) != 0 {
				t.Fatalf("dropped %v", l.Dropped())
			}
		})
	}
}

// TestBytesOfLTX: the library reads our entries, and makes the same bytes.
func TestBytesOfLTX(t *testing.T) {
	for i, pageSize := range pageSizes {
		m := newModel(uint64(i), pageSize)
		l := open(t, memDir, Options{FS: vfs.NewMem()})
		for range 20 {
			c := m.next()
			e, err := l.Append(c.h, c.emit, c.post, false)
			if err != nil {
				t.Fatal(err)
			}
			got := read(t, l, e)
			if err := ltx.NewDecoder(bytes.NewReader(got)).Verify(); err != nil {
				t.Fatal(err)
			}
			if want := encodeWithLTX(t, c); !bytes.Equal(got, want) {
				t.Fatalf("page size %d: %d bytes differ from the library's %d", pageSize, len(got), len(want))
			}
			if int64(len(got)) != e.Size {
				t.Fatalf("size is %d, entry says %d", len(got), e.Size)
			}
		}
	}
}

func encodeWithLTX(t testing.TB, c change) []byte {
	t.Helper()
	var b bytes.Buffer
	enc, err := ltx.NewEncoder(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := enc.EncodeHeader(c.h.ltx()); err != nil {
		t.Fatal(err)
	}
	if err := c.emit(func(pgno uint32, data []byte) error {
		return enc.EncodePage(ltx.PageHeader{Pgno: pgno}, data)
	}); err != nil {
		t.Fatal(err)
	}
	enc.SetPostApplyChecksum(ltx.Checksum(c.post))
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImport(t *testing.T) {
	m := newModel(1, 4096)
	src, dst := open(t, memDir, Options{FS: vfs.NewMem()}), open(t, memDir, Options{FS: vfs.NewMem()})
	for range 30 {
		e := m.append(t, src, false)
		b := read(t, src, e)
		// more bytes behind the entry belong to someone else
		r := bytes.NewReader(append(b, 1, 2, 3))
		got, err := dst.Import(r, e.Size, false)
		if err != nil {
			t.Fatal(err)
		}
		if got != e || r.Len() != 3 {
			t.Fatalf("imported %v with %d bytes left, want %v with 3", got, r.Len(), e)
		}
	}
	checkChain(t, dst)
	m.checkReplay(t, dst, m.txid)

	// A snapshot replaces everything.
	for range 5 {
		m.append(t, src, false)
	}
	c := m.snapshot()
	e, err := dst.Append(c.h, c.emit, c.post, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := dst.Entries(); len(got) != 1 || got[0] != e {
		t.Fatalf("entries after a snapshot: %v", got)
	}
	m.checkReplay(t, dst, m.txid)
}

func TestMismatch(t *testing.T) {
	m := newModel(1, 512)
	l := open(t, memDir, Options{FS: vfs.NewMem()})
	c := m.next()
	c.h.Min, c.h.Max, c.h.Pre = 5, 5, flag|1
	var mismatch *MismatchError
	if _, err := l.Append(c.h, c.emit, c.post, false); !errors.As(err, &mismatch) || !errors.Is(err, ErrMismatch) {
		t.Fatalf("append to an empty log: %v, want a MismatchError", err)
	}
	m = newModel(1, 512)
	head := m.append(t, l, false)
	c = m.next()
	c.h.Pre ^= 2
	if _, err := l.Append(c.h, c.emit, c.post, false); !errors.As(err, &mismatch) {
		t.Fatalf("append with another checksum: %v, want a MismatchError", err)
	}
	want := MismatchError{HaveTXID: head.Max, HavePost: head.Post, WantTXID: head.Max, WantPost: c.h.Pre}
	if *mismatch != want {
		t.Fatalf("mismatch is %+v, want %+v", *mismatch, want)
	}
}

func TestPage(t *testing.T) {
	m := newModel(3, 1024)
	l := open(t, memDir, Options{FS: vfs.NewMem()})
	for range 30 {
		c := m.next()
		e, err := l.Append(c.h, c.emit, c.post, false)
		if err != nil {
			t.Fatal(err)
		}
		for pgno := uint32(0); pgno <= c.h.Commit+2; pgno++ {
			got, ok, err := l.Page(e, pgno)
			want, wantOK := c.pages[pgno]
			if err != nil || ok != wantOK || !bytes.Equal(got, want) {
				t.Fatalf("page %d of %d: ok %v, want %v, err %v", pgno, e.Max, ok, wantOK, err)
			}
		}
	}
}

func TestAfter(t *testing.T) {
	l := open(t, memDir, Options{FS: vfs.NewMem(), spillSize: testSpill})
	if got, ok := l.After(0, 0); ok {
		t.Errorf("an empty log has %v after nothing", got)
	}
	m := newModel(1, 512)
	for range 5 {
		m.append(t, l, true)
	}
	entries := l.Entries()
	for i, e := range entries {
		if got, ok := l.After(e.Max, e.Post); !ok || !slices.Equal(got, entries[i+1:]) {
			t.Errorf("after %d: %v, %t", e.Max, got, ok)
		}
		if got, ok := l.After(e.Max, e.Post^1); ok {
			t.Errorf("after %d of another history: %v", e.Max, got)
		}
	}
	if got, ok := l.After(entries[4].Max+1, 0); ok {
		t.Errorf("behind the head: %v", got)
	}
}
