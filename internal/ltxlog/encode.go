package ltxlog

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/isocrc"
)

// Header is what the writer of an entry knows before its pages.
type Header struct {
	Min, Max           uint64
	Pre                uint64
	Commit, PageSize   uint32
	Epoch              uint64
	Timestamp          time.Time // kept in milliseconds
	WALOffset, WALSize int64
	Salt1, Salt2       uint32
}

// Pages hands every page of an entry to emit, in ascending order of page number and without the
// lock page, and returns the first error: its own or that of emit. data is PageSize bytes and is
// not kept after emit returns.
type Pages func(emit func(pgno uint32, data []byte) error) error

// NoPages is the content of an entry that drops the database (Commit 0).
func NoPages(func(uint32, []byte) error) error { return nil }

func (h Header) ltx() ltx.Header {
	return ltx.Header{
		Version:          ltx.Version,
		PageSize:         h.PageSize,
		Commit:           h.Commit,
		MinTXID:          ltx.TXID(h.Min),
		MaxTXID:          ltx.TXID(h.Max),
		Timestamp:        h.Timestamp.UnixMilli(),
		PreApplyChecksum: ltx.Checksum(h.Pre),
		WALOffset:        h.WALOffset,
		WALSize:          h.WALSize,
		WALSalt1:         h.Salt1,
		WALSalt2:         h.Salt2,
		NodeID:           h.Epoch,
	}
}

func (h Header) entry(post uint64, size int64) Entry {
	return newEntry(h.ltx(), post, size)
}

func newEntry(h ltx.Header, post uint64, size int64) Entry {
	return Entry{
		Min: uint64(h.MinTXID), Max: uint64(h.MaxTXID), Size: size,
		Pre: uint64(h.PreApplyChecksum), Post: post,
		Commit: h.Commit, PageSize: h.PageSize, Epoch: h.NodeID,
		Timestamp: time.UnixMilli(h.Timestamp).UTC(),
		WALOffset: h.WALOffset, WALSize: h.WALSize, Salt1: h.WALSalt1, Salt2: h.WALSalt2,
	}
}

// validateHeader checks what holds for every entry, wherever it comes from.
func validateHeader(h ltx.Header) error {
	if err := h.Validate(); err != nil {
		return err
	}
	if h.Flags != 0 {
		return fmt.Errorf("header flags are %#x, want 0: entries carry the database checksum", h.Flags)
	}
	if h.MaxTXID > MaxTXID {
		return fmt.Errorf("TXID %s is beyond %016x", h.MaxTXID, uint64(MaxTXID))
	}
	return nil
}

const flag = uint64(ltx.ChecksumFlag)

// spillSize is how many encoded bytes are held in memory before they go to a temporary file.
const spillSize = 1 << 20

// encoder makes the bytes of one entry after the other, equal to those of ltx.Encoder.
//
// ltx.Encoder is not used because it cannot be reset: a new one is 145 KB of zeroed memory per
// entry, more work than the entry itself, and it writes each entry in four writes a page.
type encoder struct {
	lz4 lz4.Compressor

	flush func(b []byte) error // takes the bytes of buf when there are spill of them
	spill int
	buf   []byte // encoded and not yet flushed
	index []byte // page index, encoded

	sealed []byte // room for form.store
	record []byte // room for a record of a pack

	header   ltx.Header
	lockPgno uint32
	n        int64  // bytes encoded so far, flushed ones too
	crc      uint64 // of the logical content so far
	sum      uint64 // XOR of the page checksums, kept for snapshots
	prev     uint32 // last pgno
}

// begin starts an entry; whatever the encoder did before is forgotten.
func (e *encoder) begin(h Header, spill int, flush func(b []byte) error) error {
	hdr := h.ltx()
	if err := validateHeader(hdr); err != nil {
		return fmt.Errorf("encode %s: %w", entryName(h.Min, h.Max), err)
	}
	e.flush, e.spill, e.buf, e.index = flush, spill, e.buf[:0], e.index[:0]
	e.header, e.lockPgno = hdr, ltx.LockPgno(hdr.PageSize)
	e.n, e.crc, e.sum, e.prev = 0, 0, 0, 0

	b, err := hdr.MarshalBinary()
	if err != nil {
		return err
	}
	e.append(b)
	return nil
}

// append adds bytes that are hashed as they are written.
func (e *encoder) append(b []byte) {
	e.buf = append(e.buf, b...)
	e.n += int64(len(b))
	e.crc = isocrc.Update(e.crc, b)
}

// page adds one page: page header, size of the LZ4 block, the block. The block is hashed
// decompressed.
func (e *encoder) page(pgno uint32, data []byte) error {
	if err := e.checkPage(pgno, data); err != nil {
		return fmt.Errorf("encode %s: %w", entryName(uint64(e.header.MinTXID), uint64(e.header.MaxTXID)), err)
	}
	if len(e.buf) >= e.spill {
		if err := e.flush(e.buf); err != nil {
			return err
		}
		e.buf = e.buf[:0]
	}

	const prefix = ltx.PageHeaderSize + 4
	start := len(e.buf)
	bound := lz4.CompressBlockBound(len(data))
	e.buf = grow(e.buf, prefix+bound)
	n, err := e.lz4.CompressBlock(data, e.buf[start+prefix:start+prefix+bound])
	if err != nil {
		return fmt.Errorf("compress page %d: %w", pgno, err)
	}
	if n == 0 {
		return fmt.Errorf("compress page %d: no output", pgno)
	}
	e.buf = e.buf[:start+prefix+n]
	binary.BigEndian.PutUint32(e.buf[start:], pgno)
	binary.BigEndian.PutUint16(e.buf[start+4:], ltx.PageHeaderFlagSize)
	binary.BigEndian.PutUint32(e.buf[start+6:], uint32(n))

	e.crc = isocrc.Update(e.crc, e.buf[start:start+prefix])
	e.crc = isocrc.Update(e.crc, data)
	e.index = appendIndexRecord(e.index, pgno, e.n, int64(prefix+n))
	e.n += int64(prefix + n)
	e.prev = pgno
	if e.header.IsSnapshot() {
		e.sum ^= pageSum(pgno, data)
	}
	return nil
}

func (e *encoder) checkPage(pgno uint32, data []byte) error {
	if len(data) != int(e.header.PageSize) {
		return fmt.Errorf("page %d has %d bytes, want %d", pgno, len(data), e.header.PageSize)
	}
	return checkOrder(e.header, e.lockPgno, e.prev, pgno)
}

// checkOrder says whether pgno may follow prev (0: none) in an entry with header h.
func checkOrder(h ltx.Header, lockPgno, prev, pgno uint32) error {
	if pgno == 0 || pgno > h.Commit {
		return fmt.Errorf("page %d is outside the database of %d pages", pgno, h.Commit)
	}
	if pgno == lockPgno {
		return fmt.Errorf("page %d is the lock page", pgno)
	}
	if pgno <= prev {
		return fmt.Errorf("page %d follows page %d", pgno, prev)
	}
	if h.IsSnapshot() && pgno != nextSnapshotPgno(prev, lockPgno) {
		return fmt.Errorf("page %d follows page %d in a snapshot, which has every page", pgno, prev)
	}
	return nil
}

func nextSnapshotPgno(prev, lockPgno uint32) uint32 {
	if prev+1 == lockPgno {
		return prev + 2
	}
	return prev + 1
}

// checkComplete says whether a snapshot may end after page prev.
func checkComplete(h ltx.Header, lockPgno, prev uint32) error {
	if next := nextSnapshotPgno(prev, lockPgno); h.IsSnapshot() && next <= h.Commit {
		return fmt.Errorf("snapshot of %d pages lacks page %d", h.Commit, next)
	}
	return nil
}

// checkPost checks the checksum after the entry against what can be known from the entry alone;
// sum is the XOR of the page checksums of a snapshot.
func checkPost(h ltx.Header, post, sum uint64) error {
	if post&flag == 0 {
		return fmt.Errorf("post-apply checksum %016x lacks bit 63", post)
	}
	if h.Commit == 0 && post != flag {
		return fmt.Errorf("post-apply checksum is %016x, want %016x for a dropped database", post, flag)
	}
	if h.IsSnapshot() && post != flag|sum {
		return fmt.Errorf("post-apply checksum is %016x, the pages of the snapshot give %016x", post, flag|sum)
	}
	return nil
}

// end finishes the entry with its index and trailer. The bytes not flushed are in buf.
func (e *encoder) end(post uint64) error {
	err := checkComplete(e.header, e.lockPgno, e.prev)
	if err == nil {
		err = checkPost(e.header, post, e.sum)
	}
	if err != nil {
		return fmt.Errorf("encode %s: %w", entryName(uint64(e.header.MinTXID), uint64(e.header.MaxTXID)), err)
	}
	e.append(make([]byte, ltx.PageHeaderSize)) // ends the pages
	e.index = binary.AppendUvarint(e.index, 0)
	e.append(e.index)
	e.append(binary.BigEndian.AppendUint64(nil, uint64(len(e.index))))
	e.append(binary.BigEndian.AppendUint64(nil, post))
	e.buf = binary.BigEndian.AppendUint64(e.buf, flag|e.crc)
	e.n += ltx.ChecksumSize
	return nil
}

func appendIndexRecord(b []byte, pgno uint32, offset, size int64) []byte {
	b = binary.AppendUvarint(b, uint64(pgno))
	b = binary.AppendUvarint(b, uint64(offset))
	return binary.AppendUvarint(b, uint64(size))
}

// pageSum is ltx.ChecksumPage without its allocations.
func pageSum(pgno uint32, data []byte) uint64 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], pgno)
	return flag | isocrc.Update(isocrc.Update(0, b[:]), data)
}

// grow returns b with room for n more bytes within its length.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) < n {
		b = append(make([]byte, 0, max(2*cap(b), len(b)+n)), b...)
	}
	return b[:len(b)+n]
}
