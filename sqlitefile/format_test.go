package sqlitefile

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestLockPgno(t *testing.T) {
	for ps, want := range map[uint32]uint32{512: 2097153, 4096: 262145, 65536: 16385} {
		if got := LockPgno(ps); got != want {
			t.Errorf("page size %d: lock page %d, want %d", ps, got, want)
		}
		if first := int64(want-1) * int64(ps); first > PendingByte || first+int64(ps) < SharedFirst+SharedSize {
			t.Errorf("page size %d: lock bytes are not all in page %d", ps, want)
		}
	}
}

func TestValidPageSize(t *testing.T) {
	for n, want := range map[uint32]bool{0: false, 1: false, 256: false, 512: true, 513: false, 65536: true, 131072: false} {
		if got := ValidPageSize(n); got != want {
			t.Errorf("ValidPageSize(%d) = %v", n, got)
		}
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	good := func() []byte {
		b := make([]byte, HeaderSize)
		copy(b, headerMagic)
		b[16], b[18], b[19], b[21], b[22], b[23] = 16, 1, 1, 64, 32, 32
		return b
	}
	if _, err := ParseHeader(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"short":         func(b []byte) []byte { return b[:99] },
		"magic":         func(b []byte) []byte { b[0] ^= 1; return b },
		"page size":     func(b []byte) []byte { b[17] = 3; return b },
		"read version":  func(b []byte) []byte { b[19] = 3; return b },
		"payload":       func(b []byte) []byte { b[22] = 31; return b },
		"reserved size": func(b []byte) []byte { b[16], b[20] = 2, 33; return b },
	} {
		if _, err := ParseHeader(spoil(good())); !errors.Is(err, ErrNotDatabase) {
			t.Errorf("%s: got %v, want ErrNotDatabase", name, err)
		}
	}
}

func TestParseWALHeaderRefuses(t *testing.T) {
	good := WALHeader{Version: WALVersion, PageSize: 4096, Salt1: 1, Salt2: 2}
	b := make([]byte, WALHeaderSize)
	good.Encode(b)
	for i := range b {
		b[i] ^= 0x10
		if _, err := ParseWALHeader(b); !errors.Is(err, ErrNoWAL) {
			t.Errorf("byte %d changed: got %v, want ErrNoWAL", i, err)
		}
		b[i] ^= 0x10
	}
	for _, h := range []WALHeader{{Version: 1, PageSize: 4096}, {Version: WALVersion, PageSize: 100}} {
		h.Encode(b)
		if _, err := ParseWALHeader(b); !errors.Is(err, ErrNoWAL) {
			t.Errorf("%+v: got %v, want ErrNoWAL", h, err)
		}
	}
	if _, err := ReadWALHeader(strings.NewReader("")); !errors.Is(err, ErrNoWAL) {
		t.Errorf("empty file: got %v, want ErrNoWAL", err)
	}
	if _, err := ReadWALHeader(brokenReader{}); !errors.Is(err, errDisk) {
		t.Errorf("failed read: got %v, want the disk's error", err)
	}
}

var errDisk = errors.New("disk")

type brokenReader struct{}

func (brokenReader) ReadAt([]byte, int64) (int, error) { return 0, errDisk }

var _ io.ReaderAt = brokenReader{}

func TestFrameOffsets(t *testing.T) {
	if got := FrameOffset(1, 4096); got != 32 {
		t.Errorf("frame 1 at %d", got)
	}
	if got, want := FrameOffset(1<<32-1, 65536), int64(32+(1<<32-2)*(65536+24)); got != want {
		t.Errorf("last frame at %d, want %d", got, want)
	}
	for size, want := range map[int64]uint32{-1: 0, 0: 0, 31: 0, 32: 0, 32 + 4119: 0, 32 + 4120: 1, 32 + 2*4120 + 9: 2} {
		if got := FrameCount(size, 4096); got != want {
			t.Errorf("FrameCount(%d) = %d, want %d", size, got, want)
		}
	}
}

func TestParseIndexHeaderRefuses(t *testing.T) {
	good := IndexHeader{Version: WALVersion, IsInit: true, PageSize: 65536, MaxFrame: 3, PageCount: 2}
	encode := func(h IndexHeader) []byte {
		b := make([]byte, CkptInfoOffset)
		h.Encode(b)
		h.Encode(b[IndexHeaderSize:])
		return b
	}
	if got, ok := ParseIndexHeader(encode(good)); !ok || got != good {
		t.Fatalf("got %+v, %v", got, ok)
	}
	b := encode(good)
	for i := range b {
		b[i] ^= 0x10 // the copies differ
		if _, ok := ParseIndexHeader(b); ok {
			t.Errorf("byte %d changed: accepted", i)
		}
		other := (i + IndexHeaderSize) % len(b)
		b[other] ^= 0x10 // the checksum is wrong
		if _, ok := ParseIndexHeader(b); ok {
			t.Errorf("byte %d of both copies changed: accepted", i)
		}
		b[i] ^= 0x10
		b[other] ^= 0x10
	}
	for name, spoil := range map[string]func(*IndexHeader){
		"not initialised": func(h *IndexHeader) { h.IsInit = false },
		"version":         func(h *IndexHeader) { h.Version++ },
		"page size":       func(h *IndexHeader) { h.PageSize = 1000 },
		"no page size":    func(h *IndexHeader) { h.PageSize = 0 },
	} {
		h := good
		spoil(&h)
		if _, ok := ParseIndexHeader(encode(h)); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	empty := IndexHeader{Version: WALVersion, IsInit: true}
	if got, ok := ParseIndexHeader(encode(empty)); !ok || got != empty {
		t.Errorf("wal-index of an empty WAL: got %+v, %v", got, ok)
	}
	if _, ok := ParseIndexHeader(b[:95]); ok {
		t.Error("95 bytes: accepted")
	}
}

func TestCkptInfo(t *testing.T) {
	want := CkptInfo{Backfill: 1, ReadMark: [5]uint32{0, 2, 3, 4, ReadMarkUnused}, BackfillAttempted: 5}
	b := make([]byte, CkptInfoSize)
	want.Encode(b)
	if got, ok := ParseCkptInfo(b); !ok || got != want {
		t.Errorf("got %+v, %v", got, ok)
	}
	if b[BackfillOffset-CkptInfoOffset] != 1 || b[ReadMarkOffset-CkptInfoOffset+4] != 2 || b[BackfillAttemptedOffset-CkptInfoOffset] != 5 {
		t.Errorf("fields are not at their offsets: %x", b)
	}
	if _, ok := ParseCkptInfo(b[:39]); ok {
		t.Error("39 bytes: accepted")
	}
}

func TestBlocks(t *testing.T) {
	for _, c := range []struct{ frame, block, n uint32 }{
		{1, 0, 1}, {4062, 0, 4062}, {4063, 1, 1}, {8158, 1, 4096}, {8159, 2, 1}, {1<<32 - 1, 1048576, 33},
	} {
		if got := BlockOf(c.frame); got != c.block {
			t.Errorf("frame %d: block %d, want %d", c.frame, got, c.block)
		}
		if got := c.frame - BlockZero(c.block); got != c.n {
			t.Errorf("frame %d: number %d in its block, want %d", c.frame, got, c.n)
		}
	}
	if got := PgnoOffset(1); got != 136 {
		t.Errorf("first page number at %d, want 136", got)
	}
	if got := PgnoOffset(4063); got != 32768 {
		t.Errorf("first page number of block 1 at %d, want 32768", got)
	}
	if got := SlotOffset(1, 2); got != 32768+16384+4 {
		t.Errorf("slot 2 of block 1 at %d", got)
	}
}

// A rolled-back tail leaves no trace: the block equals one that never had it.
func TestClearAfter(t *testing.T) {
	for _, number := range []uint32{0, 1} {
		zero := BlockZero(number)
		for _, keep := range []uint32{0, 1, 500, BlockCapacity(number)} {
			fill := func(n uint32) IndexBlock {
				b := NewIndexBlock(number)
				b.Bytes[0] = 0 // in front of block 0's table, or part of block 1's
				for i := uint32(1); i <= n; i++ {
					if _, err := b.Add(zero+i, i%700*8192+5); err != nil { // one chain of collisions
						t.Fatal(err)
					}
				}
				return b
			}
			full, want := fill(BlockCapacity(number)), fill(keep)
			full.ClearAfter(zero + keep)
			if string(full.Bytes) != string(want.Bytes) {
				t.Errorf("block %d, keep %d: entries are left", number, keep)
			}
			if got := full.Pgno(zero + keep); keep > 0 && got != keep%700*8192+5 {
				t.Errorf("block %d: frame %d holds page %d", number, zero+keep, got)
			}
		}
	}
}

func TestIndexBlockBounds(t *testing.T) {
	b := NewIndexBlock(1)
	for _, frame := range []uint32{0, 4062, 8159} {
		if _, err := b.Add(frame, 1); !errors.Is(err, ErrBrokenIndex) {
			t.Errorf("add frame %d to block 1: got %v, want ErrBrokenIndex", frame, err)
		}
		if got := b.Pgno(frame); got != 0 {
			t.Errorf("page number of frame %d in block 1: %d", frame, got)
		}
	}
	for i := range uint32(hashSlots) {
		b.setSlot(i, 1)
	}
	if _, err := b.Add(4063, 1); !errors.Is(err, ErrBrokenIndex) {
		t.Errorf("add to a full table: got %v, want ErrBrokenIndex", err)
	}
	if _, err := b.Find(1, 1, 1e6); !errors.Is(err, ErrBrokenIndex) {
		t.Errorf("find in a full table: got %v, want ErrBrokenIndex", err)
	}
	b.setSlot(hashOf(1), 5000)
	if _, err := b.Find(1, 1, 1e6); !errors.Is(err, ErrBrokenIndex) {
		t.Errorf("find with a wild slot: got %v, want ErrBrokenIndex", err)
	}
}

func TestFindRange(t *testing.T) {
	b := NewIndexBlock(0)
	for frame, pgno := range []uint32{7, 8, 7, 8, 7} {
		if _, err := b.Add(uint32(frame+1), pgno); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ pgno, low, high, want uint32 }{
		{7, 1, 5, 5}, {7, 1, 4, 3}, {7, 4, 4, 0}, {8, 1, 5, 4}, {8, 5, 5, 0}, {9, 1, 5, 0},
	} {
		if got, err := b.Find(c.pgno, c.low, c.high); err != nil || got != c.want {
			t.Errorf("page %d in frames %d to %d: got %d, %v, want %d", c.pgno, c.low, c.high, got, err, c.want)
		}
	}
}
