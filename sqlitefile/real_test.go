package sqlitefile

import (
	"bytes"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	_ "github.com/mattn/go-sqlite3"
)

var pageSizes = []uint32{512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}

// openDB opens a database with one connection, so that PRAGMAs hold.
func openDB(t testing.TB, path string, pragmas ...string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close %s: %v", path, err)
		}
	})
	exec(t, db, pragmas...)
	return db
}

func exec(t testing.TB, db *sql.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// walDB makes a database in WAL mode with some committed transactions of
// several sizes, and keeps a connection open so that WAL and wal-index stay.
func walDB(t testing.TB, pageSize uint32, rows int) (path string, db *sql.DB) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "test.db")
	db = openDB(t, path,
		fmt.Sprintf("PRAGMA page_size=%d", pageSize),
		"PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=0", "PRAGMA synchronous=OFF",
		"CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
	for i := range 5 {
		exec(t, db, fmt.Sprintf(`INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%d)
			SELECT randomblob(300) FROM n`, (rows+4)/5+i))
	}
	return path, db
}

type walFrame struct {
	Frame
	page []byte
}

// walkWAL follows the checksum chain from the header and returns all frames.
func walkWAL(t testing.TB, wal []byte) (WALHeader, []walFrame) {
	t.Helper()
	h, err := ParseWALHeader(wal)
	if err != nil {
		t.Fatal(err)
	}
	var frames []walFrame
	prev := h.Cksum
	for n := uint32(1); n <= FrameCount(int64(len(wal)), h.PageSize); n++ {
		b := wal[FrameOffset(n, h.PageSize):FrameOffset(n+1, h.PageSize)]
		f := ParseFrame(b)
		page := b[FrameHeaderSize:]
		if f.Salt1 != h.Salt1 || f.Salt2 != h.Salt2 {
			break
		}
		if prev = h.FrameCksum(prev, b, page); prev != f.Cksum {
			t.Fatalf("frame %d: checksum %08x, want %08x", n, f.Cksum, prev)
		}
		frames = append(frames, walFrame{f, page})
	}
	return h, frames
}

func TestRealWAL(t *testing.T) {
	for _, ps := range pageSizes {
		t.Run(fmt.Sprint(ps), func(t *testing.T) {
			path, db := walDB(t, ps, 200)
			wal, shm := readFile(t, path+"-wal"), readFile(t, path+"-shm")
			h, frames := walkWAL(t, wal)
			last := frames[len(frames)-1]

			ih, ok := ParseIndexHeader(shm)
			if !ok {
				t.Fatal("wal-index header not accepted")
			}
			want := IndexHeader{
				Version: WALVersion, Change: ih.Change, IsInit: true, BigEndianCksum: h.BigEndian,
				PageSize: ps, MaxFrame: uint32(len(frames)), PageCount: last.Commit,
				FrameCksum: last.Cksum, Salt1: h.Salt1, Salt2: h.Salt2,
			}
			if ih != want {
				t.Errorf("wal-index header\n got %+v\nwant %+v", ih, want)
			}
			var pages uint32
			if err := db.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
				t.Fatal(err)
			}
			if pages != ih.PageCount {
				t.Errorf("page count %d, SQLite says %d", ih.PageCount, pages)
			}

			var b [IndexHeaderSize]byte
			ih.Encode(b[:])
			if !bytes.Equal(b[:], shm[:IndexHeaderSize]) {
				t.Errorf("encoded wal-index header\n got %x\nwant %x", b, shm[:IndexHeaderSize])
			}
			var w [WALHeaderSize]byte
			if c := h.Encode(w[:]); c != h.Cksum || !bytes.Equal(w[:], wal[:WALHeaderSize]) {
				t.Errorf("encoded WAL header\n got %x\nwant %x", w, wal[:WALHeaderSize])
			}
			var f [FrameHeaderSize]byte
			prev := frames[len(frames)-2].Cksum
			if c := h.EncodeFrame(f[:], prev, last.Pgno, last.Commit, last.page); c != last.Cksum {
				t.Errorf("encoded frame: checksum %08x, want %08x", c, last.Cksum)
			}
			if ParseFrame(f[:]) != last.Frame {
				t.Errorf("encoded frame: got %+v, want %+v", ParseFrame(f[:]), last.Frame)
			}
		})
	}
}

// The chain of a big-endian WAL, which no SQLite on this machine writes.
func TestBigEndianWAL(t *testing.T) {
	path, _ := walDB(t, 1024, 100)
	wal := readFile(t, path+"-wal")
	h, frames := walkWAL(t, wal)
	h.BigEndian = !h.BigEndian
	prev := h.Encode(wal)
	for i, f := range frames {
		prev = h.EncodeFrame(wal[FrameOffset(uint32(i+1), h.PageSize):], prev, f.Pgno, f.Commit, f.page)
	}
	if err := os.WriteFile(path+"2-wal", wal, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"2", readFile(t, path), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, again := walkWAL(t, wal); len(again) != len(frames) {
		t.Errorf("%d frames, want %d", len(again), len(frames))
	}
	// SQLite is the judge: it recovers what it believes.
	var n int
	if err := openDB(t, path+"2").QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 110 {
		t.Errorf("SQLite reads %d rows (%v), want 110", n, err)
	}
}

func TestRealHashTables(t *testing.T) {
	path, db := walDB(t, 512, 12000) // more than two blocks
	exec(t, db, "UPDATE t SET v=randomblob(10) WHERE id%7=0")
	shm := readFile(t, path+"-shm")
	_, frames := walkWAL(t, readFile(t, path+"-wal"))
	maxFrame := uint32(len(frames))
	if BlockOf(maxFrame) < 2 {
		t.Fatalf("only %d frames: want three blocks", maxFrame)
	}

	built := make([]IndexBlock, BlockOf(maxFrame)+1)
	for i := range built {
		built[i] = NewIndexBlock(uint32(i))
	}
	for i, f := range frames {
		n := uint32(i + 1)
		b := built[BlockOf(n)]
		slot, err := b.Add(n, f.Pgno)
		if err != nil {
			t.Fatal(err)
		}
		if got := uint32(shm[PgnoOffset(n)]) | uint32(shm[PgnoOffset(n)+1])<<8; got != f.Pgno&0xffff {
			t.Fatalf("frame %d: page %d at its offset, want %d", n, got, f.Pgno)
		}
		o := SlotOffset(b.Number, slot)
		if got, want := shm[o:o+slotSize], b.Bytes[hashOffset+slot*slotSize:][:slotSize]; !bytes.Equal(got, want) {
			t.Fatalf("frame %d: slot %d holds %x, want %x", n, slot, got, want)
		}
	}
	for i, b := range built {
		real := shm[BlockOffset(b.Number):BlockOffset(b.Number+1)]
		skip := pgnoPos(b.Number, 1)
		if !bytes.Equal(b.Bytes[skip:], real[skip:]) {
			t.Errorf("block %d differs from SQLite's", i)
		}
	}

	newest := map[uint32]uint32{}
	for i, f := range frames {
		newest[f.Pgno] = uint32(i + 1)
	}
	for pgno := uint32(1); pgno <= frames[len(frames)-1].Commit; pgno++ {
		got := uint32(0)
		for block := int(BlockOf(maxFrame)); block >= 0 && got == 0; block-- {
			b := IndexBlock{uint32(block), shm[BlockOffset(uint32(block)):BlockOffset(uint32(block)+1)]}
			var err error
			if got, err = b.Find(pgno, 1, maxFrame); err != nil {
				t.Fatal(err)
			}
		}
		if got != newest[pgno] {
			t.Fatalf("page %d found in frame %d, want %d", pgno, got, newest[pgno])
		}
	}
}

func TestRealHeader(t *testing.T) {
	for _, ps := range pageSizes {
		for _, mode := range []string{"DELETE", "WAL"} {
			t.Run(fmt.Sprint(ps, mode), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "test.db")
				db := openDB(t, path, fmt.Sprintf("PRAGMA page_size=%d", ps), "PRAGMA journal_mode="+mode,
					"CREATE TABLE t(v)", "INSERT INTO t VALUES(zeroblob(100000))",
					"PRAGMA user_version=77", "PRAGMA application_id=88", "PRAGMA wal_checkpoint(TRUNCATE)")
				b := readFile(t, path)
				h, err := ParseHeader(b)
				if err != nil {
					t.Fatal(err)
				}
				if h.PageSize != ps || h.IsWAL() != (mode == "WAL") || h.UserVersion != 77 || h.ApplicationID != 88 {
					t.Errorf("got %+v", h)
				}
				var want uint32
				if err := db.QueryRow("PRAGMA page_count").Scan(&want); err != nil {
					t.Fatal(err)
				}
				if got := h.Pages(int64(len(b)) + 10*int64(ps)); got != want {
					t.Errorf("%d pages, want %d", got, want)
				}
				h.VersionValidFor++
				if got := h.Pages(int64(len(b))); got != want {
					t.Errorf("%d pages from the file's size, want %d", got, want)
				}
			})
		}
	}
}
