package ltxlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc64"
	"io"
	"os"
	"testing"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/vfs"
)

// resum gives altered bytes of an entry a file checksum that fits, where it can be computed: it makes
// a test reach the checks that a wrong checksum would hide.
func resum(b []byte, pages []byte) []byte {
	crc := crc64.Update(0, crc64.MakeTable(crc64.ISO), pages)
	binary.BigEndian.PutUint64(b[len(b)-8:], flag|crc)
	return b
}

// logical returns the bytes that the file checksum covers, for an entry of one page in a block of
// size bytes.
func logical(b, page []byte, size int) []byte {
	out := append([]byte(nil), b[:ltx.HeaderSize+framePrefix]...)
	out = append(out, page...)
	return append(out, b[ltx.HeaderSize+framePrefix+size:len(b)-8]...)
}

// TestImportRefuses: what a peer may send wrong is refused before it is listed, in one line, and
// the log takes the right entry afterwards.
func TestImportRefuses(t *testing.T) {
	m := newModel(1, 512)
	l := open(t, memDir, Options{FS: vfs.NewMem()})
	for range 3 {
		m.append(t, l, false)
	}
	before := l.Entries()
	c := change{h: m.header(1), pages: map[uint32][]byte{}}
	m.resize(9)
	page := bytes.Repeat([]byte("page"), 128)
	m.pages[8] = page
	c.pages[9] = page
	c = m.finish(c)
	good := c.bytes()
	size := int(binary.BigEndian.Uint32(good[ltx.HeaderSize+6:]))
	if got := resum(bytes.Clone(good), logical(good, page, size)); !bytes.Equal(got, good) {
		t.Fatal("seal does not give the checksum of an unaltered entry")
	}
	at := func(off int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[off:], v); return b }
	}
	const ph = ltx.HeaderSize
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		sealed bool
	}{
		{"empty", func([]byte) []byte { return nil }, false},
		{"header alone", func(b []byte) []byte { return b[:100] }, false},
		{"short", func(b []byte) []byte { return b[:len(b)-1] }, false},
		{"long", func(b []byte) []byte { return append(b, 0) }, false},
		{"magic", at(0, 'X'), true},
		{"flags", at(4, 0, 0, 0, 2), true},
		{"page size 0", at(8, 0, 0, 0, 0), true},
		{"page size 1024", at(8, 0, 0, 4, 0), true},
		{"commit below the page", at(12, 0, 0, 0, 8), true},
		{"max below min", at(24, 0, 0, 0, 0, 0, 0, 0, 1), true},
		{"max beyond the limit", at(24, 0xff), true},
		{"pre without bit 63", at(40, 0), true},
		{"negative WAL offset", at(48, 0x80), true},
		{"page 0", at(ph, 0, 0, 0, 0), true},
		{"lock page", at(ph, 0, 0x20, 0, 1), true},
		{"LZ4 frame", at(ph+4, 0, 0), true},
		{"unknown page flag", at(ph+4, 0, 3), true},
		{"block of 4 GiB", at(ph+6, 0xff, 0xff, 0xff, 0xff), true},
		{"block of 0 bytes", at(ph+6, 0, 0, 0, 0), true},
		{"block that does not decompress", at(ph+10, 0xff, 0xff, 0xff, 0xff), true},
		{"index", func(b []byte) []byte { b[len(b)-16-8-2] ^= 1; return b }, true},
		{"index length", func(b []byte) []byte { b[len(b)-17] ^= 1; return b }, true},
		{"post without bit 63", func(b []byte) []byte { b[len(b)-16] = 0; return b }, true},
		{"file checksum", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, false},
	} {
		b := tt.change(bytes.Clone(good))
		if tt.sealed {
			b = resum(b, logical(b, page, size))
		}
		_, err := l.Import(bytes.NewReader(b), int64(len(b)), false)
		if !errors.Is(err, ErrCorrupt) || bytes.ContainsRune([]byte(err.Error()), '\n') {
			t.Errorf("%s: %v, want ErrCorrupt in one line", tt.name, err)
		}
	}

	// A connection that ends early, or fails.
	if _, err := l.Import(bytes.NewReader(good[:50]), int64(len(good)), false); !errors.Is(err, ErrCorrupt) {
		t.Errorf("ends early: %v, want ErrCorrupt", err)
	}
	broken := io.MultiReader(bytes.NewReader(good[:150]), errReader{os.ErrDeadlineExceeded})
	if _, err := l.Import(broken, int64(len(good)), false); !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrCorrupt) {
		t.Errorf("connection fails: %v, want its error", err)
	}
	// A size nobody could mean is refused after the header.
	r := &countingReader{r: bytes.NewReader(append(bytes.Clone(good), make([]byte, 1<<20)...))}
	if _, err := l.Import(r, 1<<40, false); !errors.Is(err, ErrCorrupt) || r.n > 64<<10 {
		t.Errorf("size of 1 TiB: %v after %d bytes, want ErrCorrupt after the header", err, r.n)
	}
	if got := l.Entries(); len(got) != len(before) {
		t.Fatalf("%d entries, want %d", len(got), len(before))
	}
	if _, err := l.Import(bytes.NewReader(good), int64(len(good)), false); err != nil {
		t.Fatal(err)
	}
	checkChain(t, l)
	m.checkReplay(t, l, m.txid)
}

// A page that its block does not fill would keep bytes of the page before it.
func TestImportRefusesHalfAPage(t *testing.T) {
	page := bytes.Repeat([]byte{7}, 256)
	d := (&Buffers{}).encoder()
	block := make([]byte, 1000)
	n, err := d.lz4.CompressBlock(page, block)
	if err != nil {
		t.Fatal(err)
	}
	if err := decompress(make([]byte, 512), block[:n]); err == nil {
		t.Fatal("a block of 256 bytes filled a page of 512")
	}
}

func TestAppendRefuses(t *testing.T) {
	page := make([]byte, 512)
	list := func(pgnos ...uint32) Pages {
		return func(emit func(uint32, []byte) error) error {
			for _, pgno := range pgnos {
				if err := emit(pgno, page); err != nil {
					return err
				}
			}
			return nil
		}
	}
	own := errors.New("own error")
	for _, tt := range []struct {
		name  string
		h     func(h *Header)
		pages Pages
		post  uint64
	}{
		{"page twice", nil, list(1, 1), flag},
		{"order", nil, list(2, 1), flag},
		{"page 0", nil, list(0), flag},
		{"beyond commit", nil, list(4), flag},
		{"post", nil, list(1), 1},
		{"lock page", func(h *Header) { h.Commit = 1<<21 + 2 }, list(1<<21 + 1), flag},
		{"page size", func(h *Header) { h.PageSize = 513 }, list(1), flag},
		{"data of another size", func(h *Header) { h.PageSize = 1024 }, list(1), flag},
		{"max below min", func(h *Header) { h.Max-- }, list(1), flag},
		{"max beyond the limit", func(h *Header) { h.Max = 1 << 63 }, list(1), flag},
		{"salt without offset", func(h *Header) { h.Salt1 = 1; h.WALOffset = 0 }, list(1), flag},
		{"own error", nil, func(func(uint32, []byte) error) error { return own }, flag},
		{"dropped with another post", func(h *Header) { h.Commit = 0 }, NoPages, flag | 1},
		{"snapshot with pre", func(h *Header) { h.Min, h.Pre = 1, flag }, list(1, 2, 3), 0},
		{"snapshot without page 2", func(h *Header) { h.Min, h.Pre = 1, 0 }, list(1, 3), flag},
		{"snapshot that ends early", func(h *Header) { h.Min, h.Pre = 1, 0 }, list(1, 2), flag},
		{"snapshot with a wrong post", func(h *Header) { h.Min, h.Pre = 1, 0 }, list(1, 2, 3), flag},
	} {
		l := open(t, memDir, Options{FS: vfs.NewMem()})
		m := newModel(1, 512)
		m.append(t, l, false)
		before := l.Entries()
		h := Header{Min: m.txid + 1, Max: m.txid + 1, Pre: m.sum(), Commit: 3, PageSize: 512}
		if tt.h != nil {
			tt.h(&h)
		}
		_, err := l.Append(h, tt.pages, tt.post, true)
		if err == nil || (tt.name == "own error" && !errors.Is(err, own)) {
			t.Errorf("%s: %v, want an error", tt.name, err)
		}
		if got := l.Entries(); len(got) != len(before) || got[0] != before[0] {
			t.Errorf("%s: entries %v, want %v", tt.name, got, before)
		}
		m.append(t, l, true)
		checkChain(t, l)
	}
}

// TestDropped: a dropped database is an entry without pages, and a new one may follow it.
func TestDropped(t *testing.T) {
	m := newModel(1, 512)
	l := open(t, memDir, Options{FS: vfs.NewMem()})
	m.append(t, l, false)
	c := change{h: m.header(1)}
	m.pages = nil
	c = m.finish(c)
	if c.post != flag {
		t.Fatalf("checksum of no database is %016x", c.post)
	}
	if _, err := l.Append(c.h, c.emit, c.post, true); err != nil {
		t.Fatal(err)
	}
	m.checkReplay(t, l, m.txid)
	for range 5 {
		m.append(t, l, false)
	}
	m.checkReplay(t, l, m.txid)
	checkChain(t, l)
}

// TestLockPage: the lock page has a place in the file, but no checksum and no page in an entry.
func TestLockPage(t *testing.T) {
	const pageSize = 65536
	lock := ltx.LockPgno(pageSize)
	w := &countingWriter{}
	db := replay{w: w, sums: make([]uint64, lock+1)}
	if err := db.zero(Entry{PageSize: pageSize, Commit: lock + 1}, lock-1, lock+2); err != nil {
		t.Fatal(err)
	}
	if w.end != int64(lock+1)*pageSize || w.n != 3*pageSize {
		t.Fatalf("%d bytes up to %d written, want 3 pages up to page %d", w.n, w.end, lock+1)
	}
	before, at, after := db.sums[lock-2], db.sums[lock-1], db.sums[lock]
	if at != 0 || before == 0 || after == 0 || db.sum != before^after {
		t.Fatalf("checksums %016x, %016x, %016x, together %016x", before, at, after, db.sum)
	}

	h := ltx.Header{MinTXID: 1, Commit: lock + 1}
	if err := checkOrder(h, lock, lock-1, lock+1); err != nil {
		t.Fatal(err)
	}
	if err := checkOrder(h, lock, lock-1, lock); err == nil {
		t.Fatal("the lock page was accepted")
	}
	if err := checkComplete(h, lock, lock-1); err == nil {
		t.Fatal("a snapshot may end before the page behind the lock page")
	}
	h.Commit = lock
	if err := checkComplete(h, lock, lock-1); err != nil {
		t.Fatal(err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type countingReader struct {
	r io.Reader
	n int
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.n += n
	return n, err
}

type countingWriter struct {
	end int64
	n   int
}

func (w *countingWriter) WriteAt(b []byte, off int64) (int, error) {
	w.end = max(w.end, off+int64(len(b)))
	w.n += len(b)
	return len(b), nil
}
