package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/litefs/litefs/sqlitefile"
)

// walBuilder makes a WAL and the wal-index header that goes with it.
type walBuilder struct {
	h     sqlitefile.WALHeader
	bytes []byte
	index sqlitefile.IndexHeader
	cksum sqlitefile.Cksum
}

func newWAL(pageSize uint32) *walBuilder {
	b := &walBuilder{h: sqlitefile.WALHeader{Version: sqlitefile.WALVersion, PageSize: pageSize, Salt1: 1, Salt2: 2}}
	b.bytes = make([]byte, sqlitefile.WALHeaderSize)
	b.cksum = b.h.Encode(b.bytes)
	return b
}

// frame adds a frame; commit 0 leaves the transaction open.
func (b *walBuilder) frame(pgno, commit uint32) *walBuilder {
	f := make([]byte, sqlitefile.FrameSize(b.h.PageSize))
	page := f[sqlitefile.FrameHeaderSize:]
	for i := range page {
		page[i] = byte(pgno + uint32(len(b.bytes)) + uint32(i))
	}
	b.cksum = b.h.EncodeFrame(f, b.cksum, pgno, commit, page)
	b.bytes = append(b.bytes, f...)
	if commit != 0 {
		b.index = sqlitefile.IndexHeader{
			PageSize: b.h.PageSize, MaxFrame: sqlitefile.FrameCount(int64(len(b.bytes)), b.h.PageSize),
			PageCount: commit, FrameCksum: b.cksum, Salt1: b.h.Salt1, Salt2: b.h.Salt2,
		}
	}
	return b
}

func (b *walBuilder) scan(from WALPos, limit Limit) (Batch, error) {
	return Scan(bytes.NewReader(b.bytes), int64(len(b.bytes)), from, limit)
}

func TestPages(t *testing.T) {
	lock := sqlitefile.LockPgno(512)
	for _, c := range []struct {
		name    string
		frames  [][2]uint32 // page, commit size
		commits uint64
		count   uint32
		pages   []PageFrame
		size    int64 // frames covered
	}{
		{"nothing", nil, 0, 0, nil, 0},
		{"open", [][2]uint32{{1, 0}, {2, 0}}, 0, 0, nil, 0},
		{"one", [][2]uint32{{2, 0}, {1, 2}}, 1, 2, []PageFrame{{1, 2}, {2, 1}}, 2},
		{"newest", [][2]uint32{{2, 0}, {1, 2}, {2, 2}, {3, 0}, {2, 3}}, 3, 3, []PageFrame{{1, 2}, {2, 5}, {3, 4}}, 5},
		{"open after", [][2]uint32{{1, 1}, {1, 0}, {2, 0}}, 1, 1, []PageFrame{{1, 1}}, 1},
		{"shrunk", [][2]uint32{{7, 7}, {1, 3}}, 2, 3, []PageFrame{{1, 2}}, 2},
		{"back unwritten", [][2]uint32{{7, 7}, {1, 3}, {8, 8}}, 3, 8, []PageFrame{{1, 2}, {7, 1}, {8, 3}}, 3},
		{"lock page", [][2]uint32{{lock - 1, 0}, {lock, 0}, {lock + 1, lock + 1}}, 1, lock + 1, []PageFrame{{lock - 1, 1}, {lock + 1, 3}}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newWAL(512)
			for _, f := range c.frames {
				b.frame(f[0], f[1])
			}
			for name, limit := range map[string]Limit{"chain": {}, "index": Published(b.index)} {
				got, err := b.scan(WALPos{}, limit)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if got.Commits != c.commits || got.PageCount != c.count || fmt.Sprint(got.Pages) != fmt.Sprint(c.pages) {
					t.Errorf("%s: got %+v", name, got)
				}
				off, size := got.WALRange()
				if wantOff := int64(32); size != c.size*536 || c.commits > 0 && off != wantOff {
					t.Errorf("%s: WAL range %d+%d", name, off, size)
				}
			}
		})
	}
}

func TestContinues(t *testing.T) {
	b := newWAL(512).frame(1, 0).frame(2, 2)
	first, err := b.scan(WALPos{}, Limit{})
	if err != nil {
		t.Fatal(err)
	}
	b.frame(3, 3).frame(4, 0)
	for name, limit := range map[string]Limit{"chain": {}, "index": Published(b.index)} {
		got, err := b.scan(first.To, limit)
		if err != nil {
			t.Fatal(err)
		}
		if got.Commits != 1 || !reflect.DeepEqual(got.Pages, []PageFrame{{3, 3}}) || got.From != first.To {
			t.Errorf("%s: got %+v", name, got)
		}
		if off, size := got.WALRange(); off != 32+2*536 || size != 536 {
			t.Errorf("%s: WAL range %d+%d", name, off, size)
		}
		none, err := b.scan(got.To, limit)
		if err != nil || none.Commits != 0 || none.To != got.To {
			t.Errorf("%s: nothing new gives %+v, %v", name, none, err)
		}
	}
}

// More different pages than a list holds before it compacts, each many times.
func TestManyPages(t *testing.T) {
	const pages, frames = 3000, 40000
	rng := rand.New(rand.NewPCG(1, 2))
	var c collector
	newest := map[uint32]uint32{}
	for frame := uint32(1); frame <= frames; frame++ {
		f := sqlitefile.Frame{Pgno: rng.Uint32N(pages) + 1}
		if frame%7000 < 20 || frame == frames {
			f.Commit = pages
		}
		c.add(frame, f)
		newest[f.Pgno] = frame
		if f.Commit != 0 && len(c.open.frames) != 0 {
			t.Fatalf("frame %d: %d frames open after a commit", frame, len(c.open.frames))
		}
		if n := len(c.open.frames) + len(c.committed.frames); n > 2*minCompact+pages {
			t.Fatalf("frame %d: %d entries for %d pages", frame, n, pages)
		}
	}
	b := c.batch(newWAL(512).h, WALPos{})
	if len(b.Pages) != len(newest) {
		t.Fatalf("%d pages, want %d", len(b.Pages), len(newest))
	}
	for i, p := range b.Pages {
		if i > 0 && b.Pages[i-1].Pgno >= p.Pgno || newest[p.Pgno] != p.Frame {
			t.Fatalf("page %d in frame %d, want %d", p.Pgno, p.Frame, newest[p.Pgno])
		}
	}
}

func TestNoHeader(t *testing.T) {
	for _, wal := range [][]byte{nil, make([]byte, 31), make([]byte, 4096)} {
		b := &walBuilder{bytes: wal}
		from := WALPos{Salt1: 1, Salt2: 2, Frame: 3}
		if got, err := b.scan(from, Limit{}); err != nil || got.Commits != 0 || got.To != from {
			t.Errorf("%d bytes, no index: %+v, %v", len(wal), got, err)
		}
		if _, err := b.scan(from, Published(sqlitefile.IndexHeader{MaxFrame: 1})); !errors.Is(err, ErrBroken) {
			t.Errorf("%d bytes, published frame: got %v, want ErrBroken", len(wal), err)
		}
		if got, err := b.scan(from, Published(sqlitefile.IndexHeader{Salt1: 2})); err != nil || got.To != from {
			t.Errorf("%d bytes, nothing published: %+v, %v", len(wal), got, err)
		}
		if _, err := At(bytes.NewReader(wal), 1); !errors.Is(err, sqlitefile.ErrNoWAL) {
			t.Errorf("%d bytes, At: %v, want ErrNoWAL", len(wal), err)
		}
	}
}

func TestRestarted(t *testing.T) {
	b := newWAL(512).frame(1, 1)
	stale := Published(b.index)
	first, err := b.scan(WALPos{}, Limit{})
	if err != nil {
		t.Fatal(err)
	}
	next := newWAL(512)
	next.h.Salt1, next.h.Salt2 = 2, 99
	next.cksum = next.h.Encode(next.bytes)
	next.frame(1, 1)
	for name, limit := range map[string]Limit{"chain": {}, "index": Published(next.index), "stale index": stale} {
		if _, err := next.scan(first.To, limit); !errors.Is(err, ErrRestarted) {
			t.Errorf("%s: got %v, want ErrRestarted", name, err)
		}
	}
	if _, err := next.scan(WALPos{}, stale); !errors.Is(err, ErrRestarted) {
		t.Errorf("from the start with a stale index: got %v, want ErrRestarted", err)
	}
	if _, err := Scan(bytes.NewReader(b.bytes), int64(len(b.bytes))+536, WALPos{}, Limit{}); !errors.Is(err, ErrRestarted) {
		t.Errorf("WAL shorter than said: got %v, want ErrRestarted", err)
	}
}

func TestBroken(t *testing.T) {
	build := func() (*walBuilder, WALPos) {
		b := newWAL(512).frame(1, 1)
		first, err := b.scan(WALPos{}, Limit{})
		if err != nil {
			t.Fatal(err)
		}
		return b.frame(2, 0).frame(3, 3), first.To
	}
	for name, spoil := range map[string]func(b *walBuilder, from *WALPos){
		"captured frame changed":    func(b *walBuilder, from *WALPos) { from.Cksum[0]++ },
		"captured frame gone":       func(b *walBuilder, from *WALPos) { from.Frame = 9 },
		"index before the position": func(b *walBuilder, from *WALPos) { from.Frame, from.Cksum = 3, b.cksum; b.index.MaxFrame = 2 },
		"index at the position":     func(b *walBuilder, from *WALPos) { b.index.MaxFrame = 1 },
		"index beyond the file":     func(b *walBuilder, from *WALPos) { b.index.MaxFrame = 4e9 },
		"wrong checksum":            func(b *walBuilder, from *WALPos) { b.index.FrameCksum[1]++ },
		"wrong page size":           func(b *walBuilder, from *WALPos) { b.index.PageSize = 1024 },
		"wrong salt":                func(b *walBuilder, from *WALPos) { b.bytes[sqlitefile.FrameOffset(2, 512)+8]++ },
		"page 0":                    func(b *walBuilder, from *WALPos) { clear(b.bytes[sqlitefile.FrameOffset(2, 512):][:4]) },
		"no commit frame":           func(b *walBuilder, from *WALPos) { clear(b.bytes[sqlitefile.FrameOffset(3, 512)+4:][:4]) },
	} {
		b, from := build()
		spoil(b, &from)
		if _, err := b.scan(from, Published(b.index)); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: got %v, want ErrBroken", name, err)
		}
	}
	b, from := build()
	from.Cksum[0]++
	if _, err := b.scan(from, Limit{}); !errors.Is(err, ErrBroken) {
		t.Errorf("chain from a changed frame: got %v, want ErrBroken", err)
	}
	if _, err := At(bytes.NewReader(b.bytes), 2); !errors.Is(err, ErrBroken) {
		t.Errorf("At a frame that is no commit: got %v, want ErrBroken", err)
	}
}

// The chain ends at the first frame that is torn or of an earlier life.
func TestChainEnds(t *testing.T) {
	for name, at := range map[string]int64{"page number": 3, "commit size": 7, "salt": 8, "checksum": 16, "page": 24 + 100} {
		b := newWAL(512).frame(1, 1).frame(2, 2).frame(3, 3)
		b.bytes[sqlitefile.FrameOffset(2, 512)+at] ^= 4
		got, err := b.scan(WALPos{}, Limit{})
		if err != nil || got.Commits != 1 || got.To.Frame != 1 {
			t.Errorf("%s changed: %+v, %v", name, got, err)
		}
	}
	b := newWAL(512).frame(1, 1).frame(2, 2)
	got, err := Scan(bytes.NewReader(b.bytes), int64(len(b.bytes))-1, WALPos{}, Limit{})
	if err != nil || got.To.Frame != 1 {
		t.Errorf("last frame cut off: %+v, %v", got, err)
	}
}

var errDisk = errors.New("disk")

// failingReader fails the n-th read.
type failingReader struct {
	io.ReaderAt
	left int
}

func (r *failingReader) ReadAt(b []byte, off int64) (int, error) {
	if r.left--; r.left < 0 {
		return 0, errDisk
	}
	return r.ReaderAt.ReadAt(b, off)
}

// Every read fails in turn; the error comes back as it is.
func TestReadErrors(t *testing.T) {
	b := newWAL(65536).frame(1, 1)
	first, err := b.scan(WALPos{}, Limit{})
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		b.frame(2, 2)
	}
	for name, limit := range map[string]Limit{"chain": {}, "index": Published(b.index)} {
		for n := 0; ; n++ {
			r := &failingReader{bytes.NewReader(b.bytes), n}
			got, err := Scan(r, int64(len(b.bytes)), first.To, limit)
			if err == nil {
				if n < 4 || got.Commits != 8 {
					t.Errorf("%s: %d reads, %+v", name, n, got)
				}
				break
			}
			if !errors.Is(err, errDisk) || errors.Is(err, ErrBroken) || errors.Is(err, ErrRestarted) {
				t.Fatalf("%s, read %d: %v", name, n, err)
			}
		}
	}
	for n := range 2 {
		if _, err := At(&failingReader{bytes.NewReader(b.bytes), n}, 1); !errors.Is(err, errDisk) {
			t.Errorf("At, read %d: %v", n, err)
		}
	}
}

func TestReadPage(t *testing.T) {
	b := newWAL(512).frame(1, 1).frame(2, 2)
	buf := make([]byte, 512)
	if err := ReadPage(bytes.NewReader(b.bytes), 2, 512, buf); err != nil || !bytes.Equal(buf, b.bytes[len(b.bytes)-512:]) {
		t.Errorf("wrong page (%v)", err)
	}
	if err := ReadPage(bytes.NewReader(b.bytes), 3, 512, buf); !errors.Is(err, ErrBroken) {
		t.Errorf("frame beyond the end: %v, want ErrBroken", err)
	}
	if err := ReadPage(bytes.NewReader(b.bytes), 1, 1024, buf); err == nil {
		t.Error("buffer of the wrong size accepted")
	}
}

// FuzzScan: whatever a WAL holds, a scan ends, its batch keeps what Batch
// promises, and its memory is bounded by the file.
func FuzzScan(f *testing.F) {
	b := newWAL(512).frame(2, 0).frame(1, 2)
	first, err := b.scan(WALPos{}, Limit{})
	if err != nil {
		f.Fatal(err)
	}
	b.frame(3, 3).frame(1, 2).frame(4, 0)
	f.Add(b.bytes, int64(len(b.bytes)), uint32(0), uint32(4), []byte{})
	f.Add(b.bytes, int64(len(b.bytes)), first.To.Frame, uint32(4), []byte{9, 1, 2})
	f.Fuzz(func(t *testing.T, wal []byte, size int64, fromFrame, maxFrame uint32, edits []byte) {
		// The checksums of the header must hold for a scan to look further.
		wal = append(bytes.Clone(b.bytes[:sqlitefile.WALHeaderSize]), wal[min(len(wal), sqlitefile.WALHeaderSize):]...)
		for i := 0; i+3 <= len(edits); i += 3 {
			at := int(edits[i])<<8 | int(edits[i+1])
			if at < len(wal) {
				wal[at] ^= edits[i+2]
			}
		}
		r := bytes.NewReader(wal)
		var from WALPos
		if pos, err := At(r, fromFrame); err == nil && fromFrame > 0 {
			from = pos
		}
		index := b.index
		index.MaxFrame = maxFrame
		if pos, err := At(r, maxFrame); err == nil {
			index.FrameCksum = pos.Cksum
		}
		for _, limit := range []Limit{{}, Published(index)} {
			got, err := Scan(r, size, from, limit)
			if err != nil {
				if !errors.Is(err, ErrBroken) && !errors.Is(err, ErrRestarted) {
					t.Errorf("unexpected error: %v", err)
				}
				continue
			}
			checkBatch(t, got, from, int64(len(wal)))
		}
	})
}

func checkBatch(t *testing.T, b Batch, from WALPos, walSize int64) {
	t.Helper()
	if b.From != from {
		t.Errorf("from %+v, want %+v", b.From, from)
	}
	if b.Commits == 0 {
		if b.To != from || len(b.Pages) != 0 {
			t.Errorf("batch without commits: %+v", b)
		}
		return
	}
	if b.To.Frame <= from.Frame || sqlitefile.FrameOffset(b.To.Frame, b.PageSize)+sqlitefile.FrameHeaderSize > walSize {
		t.Errorf("to %+v from %+v in %d bytes", b.To, from, walSize)
	}
	prev := uint32(0)
	for _, p := range b.Pages {
		if p.Pgno <= prev || p.Pgno > b.PageCount || p.Pgno == sqlitefile.LockPgno(b.PageSize) || p.Frame <= from.Frame || p.Frame > b.To.Frame {
			t.Errorf("page %+v after %d in %+v", p, prev, b)
		}
		prev = p.Pgno
	}
}

func TestLimitEndsAt(t *testing.T) {
	at := WALPos{Frame: 5, Salt1: 1, Salt2: 2, Cksum: sqlitefile.Cksum{3, 4}}
	hdr := sqlitefile.IndexHeader{MaxFrame: 5, Salt1: 1, Salt2: 2, FrameCksum: at.Cksum}
	if !Published(hdr).EndsAt(at) {
		t.Error("what was scanned is all that is published, and not known as that")
	}
	if (Limit{}).EndsAt(at) || (Limit{}).EndsAt(WALPos{}) || Published(sqlitefile.IndexHeader{}).EndsAt(WALPos{}) {
		t.Error("nothing is published, and taken for everything")
	}
	for name, change := range map[string]func(*sqlitefile.IndexHeader){
		"more frames":  func(h *sqlitefile.IndexHeader) { h.MaxFrame++ },
		"fewer frames": func(h *sqlitefile.IndexHeader) { h.MaxFrame-- },
		"begun anew":   func(h *sqlitefile.IndexHeader) { h.Salt1++ },
		"another salt": func(h *sqlitefile.IndexHeader) { h.Salt2++ },
		"other frames": func(h *sqlitefile.IndexHeader) { h.FrameCksum[1]++ },
	} {
		h := hdr
		change(&h)
		if Published(h).EndsAt(at) {
			t.Errorf("%s: taken for what was scanned", name)
		}
	}
}
