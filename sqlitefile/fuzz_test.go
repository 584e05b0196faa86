package sqlitefile

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte(headerMagic + strings.Repeat("\x00", 84)))
	path, _ := walDB(f, 512, 10)
	f.Add(readFile(f, path)[:HeaderSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			if !errors.Is(err, ErrNotDatabase) {
				t.Errorf("unexpected error: %v", err)
			}
			return
		}
		if !ValidPageSize(h.PageSize) {
			t.Errorf("page size %d accepted", h.PageSize)
		}
		h.Pages(int64(len(b)))
	})
}

func FuzzParseWALHeader(f *testing.F) {
	b := make([]byte, WALHeaderSize)
	for _, big := range []bool{false, true} {
		WALHeader{BigEndian: big, Version: WALVersion, PageSize: 4096, Seq: 1, Salt1: 2, Salt2: 3}.Encode(b)
		f.Add(bytes.Clone(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseWALHeader(b)
		if err != nil {
			if !errors.Is(err, ErrNoWAL) {
				t.Errorf("unexpected error: %v", err)
			}
			return
		}
		out := make([]byte, WALHeaderSize)
		h.Encode(out)
		if !bytes.Equal(out, b[:WALHeaderSize]) {
			t.Errorf("encoded again %x, was %x", out, b[:WALHeaderSize])
		}
	})
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte("page\x00\x00\x00\x01salt1234checksum"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < FrameHeaderSize {
			return
		}
		out := make([]byte, FrameHeaderSize)
		ParseFrame(b).Encode(out)
		if !bytes.Equal(out, b[:FrameHeaderSize]) {
			t.Errorf("encoded again %x, was %x", out, b[:FrameHeaderSize])
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	b := make([]byte, CkptInfoOffset+CkptInfoSize)
	h := IndexHeader{Version: WALVersion, IsInit: true, PageSize: 4096, MaxFrame: 7, PageCount: 3}
	h.Encode(b)
	h.Encode(b[IndexHeaderSize:])
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := ParseIndexHeader(b); ok {
			out := make([]byte, IndexHeaderSize)
			h.Encode(out)
			if again, ok := ParseIndexHeader(append(out, out...)); !ok || again != h {
				t.Errorf("encoded again %+v, was %+v", again, h)
			}
		}
		if len(b) >= CkptInfoOffset {
			ParseCkptInfo(b[CkptInfoOffset:])
		}
	})
}

// FuzzIndexBlock: whatever a -shm file holds, lookups end and stay in range.
func FuzzIndexBlock(f *testing.F) {
	path, _ := walDB(f, 512, 100)
	f.Add(readFile(f, path+"-shm")[:IndexBlockSize], uint32(0), uint32(1), uint32(9))
	f.Fuzz(func(t *testing.T, data []byte, number, pgno, frame uint32) {
		b := NewIndexBlock(number % 3)
		copy(b.Bytes, data)
		if got, err := b.Find(pgno, 1, frame); err == nil && got > frame {
			t.Errorf("frame %d found, last is %d", got, frame)
		}
		b.Pgno(frame)
		if _, err := b.Add(frame, pgno); err == nil {
			if got := b.Pgno(frame); got != pgno {
				t.Errorf("frame %d holds page %d, want %d", frame, got, pgno)
			}
		}
		b.ClearAfter(frame)
	})
}

// FuzzJournal: a rollback reads a bounded number of records, all within the
// database.
func FuzzJournal(f *testing.F) {
	b := make([]byte, 512+2*(512+recordOverhead))
	copy(b, JournalMagic)
	for i, v := range []byte{0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 2, 0, 0, 0, 2, 0} {
		b[8+i] = v
	}
	b[512+3], b[512+520+3] = 1, 2
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, size := bytes.NewReader(b), int64(len(b))
		if _, err := SuperJournalName(r, size); err != nil {
			t.Errorf("super-journal name: %v", err)
		}
		jr, err := NewJournalReader(r, size)
		if err != nil {
			return
		}
		for n := int64(0); ; n++ {
			rec, err := jr.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatalf("record %d: %v", n, err)
			}
			if rec.Pgno == 0 || rec.Pgno > jr.Header().InitialPages || len(rec.Page) != int(jr.Header().PageSize) {
				t.Fatalf("record %d: page %d, %d bytes", n, rec.Pgno, len(rec.Page))
			}
			if n > size {
				t.Fatal("no end")
			}
		}
	})
}
