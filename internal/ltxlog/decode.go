package ltxlog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/isocrc"
)

const (
	framePrefix = ltx.PageHeaderSize + 4 // page header and size of the block
	// minEntrySize is an entry without pages: header, end of pages, end and length of the index, trailer.
	minEntrySize = ltx.HeaderSize + ltx.PageHeaderSize + 1 + 8 + ltx.TrailerSize
	// maxIndexRecord is one record of the page index: three uvarints of 32, 63 and 32 bits.
	maxIndexRecord = 5 + 9 + 5
)

// frame is one page inside an entry.
type frame struct {
	pgno   uint32
	offset int64  // of its page header in the file
	size   int64  // bytes in the file, page header included
	data   []byte // PageSize bytes, valid until the next frame
}

// decoder reads and verifies one entry. Everything in it is checked: header, order and size of
// the pages, index, both checksums, total size. ltx.Decoder is not used for it because it
// allocates what a 4-byte size field says, up to 4 GiB, accepts blocks that do not fill their
// page, and never compares the index with the places of the pages.
type decoder struct {
	entryState
	r *bufio.Reader

	scratch     [64]byte
	block, data []byte // one page, compressed and not

	raw, arena []byte // for Log.Pages: a small entry, its pages
}

// entryState is what a decoder knows of the entry at hand.
type entryState struct {
	size     int64 // announced bytes
	header   ltx.Header
	trailer  ltx.Trailer
	lockPgno uint32
	n        int64  // bytes read
	crc      uint64 // of the logical content
	sum      uint64 // XOR of page checksums, for snapshots
	prev     uint32
	indexCRC uint64 // of the index that the pages ask for
	indexLen int64
}

// decode verifies an entry of size bytes. onHeader (may be nil) sees the valid header before
// anything else is read, onFrame (may be nil) each page in order: before the end of decode
// what they see is not verified. Wrong content is ErrCorrupt; an error of r is returned as it is.
func (b *Buffers) decode(r io.Reader, size int64, onHeader func(ltx.Header) error, onFrame func(frame) error) (Entry, error) {
	d := b.decoder(r, size)
	defer b.putDecoder(d)
	return d.decode(onHeader, onFrame)
}

func (d *decoder) decode(onHeader func(ltx.Header) error, onFrame func(frame) error) (Entry, error) {
	if err := d.readHeader(); err != nil {
		return Entry{}, err
	}
	if onHeader != nil {
		if err := onHeader(d.header); err != nil {
			return Entry{}, err
		}
	}
	for {
		f, ok, err := d.readFrame()
		if err != nil {
			return Entry{}, err
		}
		if !ok {
			break
		}
		if onFrame != nil {
			if err := onFrame(f); err != nil {
				return Entry{}, err
			}
		}
	}
	if err := d.readIndex(); err != nil {
		return Entry{}, err
	}
	if err := d.readTrailer(); err != nil {
		return Entry{}, err
	}
	return newEntry(d.header, uint64(d.trailer.PostApplyChecksum), d.size), nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, args...))
}

// read fills b; the end of the input inside an entry is corruption, not an I/O error.
func (d *decoder) read(b []byte, what string) error {
	if d.n+int64(len(b)) > d.size {
		return corrupt("%s at byte %d goes beyond the %d bytes of the entry", what, d.n, d.size)
	}
	n, err := io.ReadFull(d.r, b)
	d.n += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("%s ends at byte %d of %d", what, d.n, d.size)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

func (d *decoder) readHashed(b []byte, what string) error {
	if err := d.read(b, what); err != nil {
		return err
	}
	d.crc = isocrc.Update(d.crc, b)
	return nil
}

func (d *decoder) readHeader() error {
	if d.size < minEntrySize {
		return corrupt("entry has %d bytes, want at least %d", d.size, minEntrySize)
	}
	b := make([]byte, ltx.HeaderSize)
	if err := d.readHashed(b, "header"); err != nil {
		return err
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	d.header, d.lockPgno = h, ltx.LockPgno(h.PageSize)
	if limit := maxEntrySize(h); d.size > limit {
		return corrupt("entry has %d bytes, at most %d fit a database of %d pages of %d bytes", d.size, limit, h.Commit, h.PageSize)
	}
	d.data = resize(d.data, int(h.PageSize))
	d.block = resize(d.block, lz4.CompressBlockBound(int(h.PageSize)))
	return nil
}

func parseHeader(b []byte) (ltx.Header, error) {
	var h ltx.Header
	if err := h.UnmarshalBinary(b); err != nil {
		return h, corrupt("header: %w", err)
	}
	if err := validateHeader(h); err != nil {
		return h, corrupt("header: %w", err)
	}
	return h, nil
}

// maxEntrySize is the size of an entry that carries every page incompressible.
func maxEntrySize(h ltx.Header) int64 {
	page := int64(framePrefix + lz4.CompressBlockBound(int(h.PageSize)) + maxIndexRecord)
	return minEntrySize + int64(h.Commit)*page
}

// readFrame reads the next page; false at the end of the pages.
func (d *decoder) readFrame() (frame, bool, error) {
	offset := d.n
	b := d.scratch[:framePrefix]
	if err := d.readHashed(b[:ltx.PageHeaderSize], "page header"); err != nil {
		return frame{}, false, err
	}
	var ph ltx.PageHeader
	if err := ph.UnmarshalBinary(b); err != nil {
		return frame{}, false, err
	}
	if ph.IsZero() {
		if err := checkComplete(d.header, d.lockPgno, d.prev); err != nil {
			return frame{}, false, corrupt("%w", err)
		}
		return frame{}, false, nil
	}
	if ph.Flags != ltx.PageHeaderFlagSize {
		return frame{}, false, corrupt("page %d has flags %#x, want %#x (LZ4 block)", ph.Pgno, ph.Flags, ltx.PageHeaderFlagSize)
	}
	if err := checkOrder(d.header, d.lockPgno, d.prev, ph.Pgno); err != nil {
		return frame{}, false, corrupt("%w", err)
	}
	if err := d.readHashed(b[ltx.PageHeaderSize:], "page size"); err != nil {
		return frame{}, false, err
	}
	if err := d.readBlock(ph.Pgno, binary.BigEndian.Uint32(b[ltx.PageHeaderSize:])); err != nil {
		return frame{}, false, err
	}
	d.prev = ph.Pgno
	f := frame{pgno: ph.Pgno, offset: offset, size: d.n - offset, data: d.data}
	d.expectIndex(appendIndexRecord(d.scratch[:0], f.pgno, f.offset, f.size))
	if d.header.IsSnapshot() {
		d.sum ^= pageSum(f.pgno, f.data)
	}
	return f, true, nil
}

// readBlock reads and decompresses one page into data. The size is bounded before it is used.
func (d *decoder) readBlock(pgno, size uint32) error {
	if size == 0 || int64(size) > int64(len(d.block)) {
		return corrupt("page %d has a block of %d bytes, want 1 to %d", pgno, size, len(d.block))
	}
	block := d.block[:size]
	if err := d.read(block, "page"); err != nil {
		return err
	}
	if err := decompress(d.data, block); err != nil {
		return corrupt("page %d: %w", pgno, err)
	}
	d.crc = isocrc.Update(d.crc, d.data)
	return nil
}

func decompress(page, block []byte) error {
	n, err := lz4.UncompressBlock(block, page)
	if err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	if n != len(page) {
		return fmt.Errorf("decompress: %d bytes, want %d", n, len(page))
	}
	return nil
}

func (d *decoder) expectIndex(b []byte) {
	d.indexCRC = isocrc.Update(d.indexCRC, b)
	d.indexLen += int64(len(b))
}

// readIndex compares the index with the places of the pages. It has one encoding, so it must
// have the length and the CRC of the index that the pages ask for.
func (d *decoder) readIndex() error {
	d.expectIndex([]byte{0})
	var crc uint64
	for left := d.indexLen; left > 0; {
		part := d.block[:min(left, int64(len(d.block)))]
		if err := d.readHashed(part, "page index"); err != nil {
			return err
		}
		crc = isocrc.Update(crc, part)
		left -= int64(len(part))
	}
	if crc != d.indexCRC {
		return corrupt("page index does not name the pages of the entry")
	}
	b := d.scratch[:8]
	if err := d.readHashed(b, "length of the page index"); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(b); got != uint64(d.indexLen) {
		return corrupt("length of the page index is %d, want %d", got, d.indexLen)
	}
	return nil
}

func (d *decoder) readTrailer() error {
	b := d.scratch[:ltx.TrailerSize]
	if err := d.readHashed(b[:8], "trailer"); err != nil {
		return err
	}
	if err := d.read(b[8:], "trailer"); err != nil {
		return err
	}
	if err := d.trailer.UnmarshalBinary(b); err != nil {
		return err
	}
	if want := flag | d.crc; uint64(d.trailer.FileChecksum) != want {
		return corrupt("file checksum is %016x, the content gives %016x", uint64(d.trailer.FileChecksum), want)
	}
	if err := checkPost(d.header, uint64(d.trailer.PostApplyChecksum), d.sum); err != nil {
		return corrupt("%w", err)
	}
	if d.n != d.size {
		return corrupt("entry ends at byte %d of %d", d.n, d.size)
	}
	return nil
}

// resize returns a slice of n bytes with any content.
func resize(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}
