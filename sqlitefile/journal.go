package sqlitefile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// JournalMagic starts each segment of a rollback journal (fileformat2.html 3).
const JournalMagic = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"

// JournalHeaderSize is how many bytes of a journal header are used. It is padded
// to a sector, so the records start at JournalHeader.SectorSize.
const JournalHeaderSize = 28

// RecordsToEnd is the record count of a journal that was written without
// syncing: its records run to the end of the file.
const RecordsToEnd = 0xffffffff

// recordOverhead is what a record has beside the page: its number before,
// its checksum after.
const recordOverhead = 8

// Bounds of a sector size in bytes (pager.c: MAX_SECTOR_SIZE, readJournalHdr).
const (
	minSectorSize = 32
	maxSectorSize = 65536
)

// ErrNoJournal is returned for bytes that start no segment of a journal. SQLite
// rolls nothing back from there on.
var ErrNoJournal = errors.New("no valid journal header")

// JournalHeader is the header of one segment of a rollback journal.
type JournalHeader struct {
	Records      uint32 // in this segment, or RecordsToEnd; 0 until the segment is synced
	Nonce        uint32 // start of each record's checksum
	InitialPages uint32 // size of the database in pages before the transaction
	SectorSize   uint32 // bytes; the size of a header with its padding
	PageSize     uint32 // bytes
}

// ParseJournalHeader decodes the first JournalHeaderSize bytes of a segment.
func ParseJournalHeader(b []byte) (JournalHeader, error) {
	if len(b) < JournalHeaderSize {
		return JournalHeader{}, fmt.Errorf("%w: %d bytes, a header has %d", ErrNoJournal, len(b), JournalHeaderSize)
	}
	if string(b[:8]) != JournalMagic {
		return JournalHeader{}, fmt.Errorf("%w: magic number %x", ErrNoJournal, b[:8])
	}
	h := JournalHeader{
		Records:      binary.BigEndian.Uint32(b[8:]),
		Nonce:        binary.BigEndian.Uint32(b[12:]),
		InitialPages: binary.BigEndian.Uint32(b[16:]),
		SectorSize:   binary.BigEndian.Uint32(b[20:]),
		PageSize:     binary.BigEndian.Uint32(b[24:]),
	}
	switch s := h.SectorSize; {
	case s < minSectorSize || s > maxSectorSize || s&(s-1) != 0:
		return JournalHeader{}, fmt.Errorf("%w: sector size %d, want a power of two from %d to %d", ErrNoJournal, s, minSectorSize, maxSectorSize)
	case !ValidPageSize(h.PageSize):
		return JournalHeader{}, fmt.Errorf("%w: page size %d, want a power of two from 512 to 65536", ErrNoJournal, h.PageSize)
	}
	return h, nil
}

// IsZeroed reports whether b, the start of a journal, says that there is nothing
// to roll back: PERSIST mode ends a transaction by zeroing the header, TRUNCATE
// by emptying the file. SQLite decides by the first byte (pager.c:
// hasHotJournal).
func IsZeroed(b []byte) bool {
	return len(b) == 0 || b[0] == 0
}

// RecordSize returns the size in bytes of a record: number, page and checksum.
func (h JournalHeader) RecordSize() int64 {
	return int64(h.PageSize) + recordOverhead
}

// RecordCksum returns the checksum of a record with this page: the nonce plus
// every 200th byte from the end. It finds torn records, not flipped bits.
func (h JournalHeader) RecordCksum(page []byte) uint32 {
	sum := h.Nonce
	for i := len(page) - 200; i > 0; i -= 200 {
		sum += uint32(page[i])
	}
	return sum
}

// alignSector rounds a byte offset up to where a segment header may start.
func (h JournalHeader) alignSector(off int64) int64 {
	s := int64(h.SectorSize)
	return (off + s - 1) / s * s
}

// Record is one page of a rollback journal, as it was before the transaction.
type Record struct {
	Pgno uint32
	Page []byte // valid until the next record is read
}

// JournalReader yields the records of a journal that a rollback writes back, in
// the order of the file and over all segments. It stops where SQLite stops: at
// a record that is short or whose checksum is wrong, or at a segment that has
// no header. That is the end of what was synced, not an error.
type JournalReader struct {
	r       io.ReaderAt
	size    int64
	first   JournalHeader
	segment JournalHeader
	off     int64 // of the next record
	left    int64 // records of this segment not yet read
	buf     []byte
	done    bool
}

// NewJournalReader reads the header of a journal of size bytes. ErrNoJournal
// means that there is nothing to roll back.
func NewJournalReader(r io.ReaderAt, size int64) (*JournalReader, error) {
	var b [JournalHeaderSize]byte
	n, err := r.ReadAt(b[:min(size, JournalHeaderSize)], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read journal header: %w", err)
	}
	h, err := ParseJournalHeader(b[:n])
	if err != nil {
		return nil, err
	}
	jr := &JournalReader{r: r, size: size, first: h, buf: make([]byte, h.RecordSize())}
	jr.enter(h, 0)
	return jr, nil
}

// Header returns the header of the first segment. Its page and sector size hold
// for the whole journal, its InitialPages is the size to restore.
func (jr *JournalReader) Header() JournalHeader { return jr.first }

// enter starts to read the segment whose header lies at off.
func (jr *JournalReader) enter(h JournalHeader, off int64) {
	jr.segment = h
	jr.off = off + int64(jr.first.SectorSize)
	jr.left = int64(h.Records)
	if h.Records == RecordsToEnd {
		jr.left = (jr.size - int64(jr.first.SectorSize)) / jr.first.RecordSize()
	}
}

// Next returns the next record; io.EOF at the end of what a rollback reads.
// Records of pages beyond InitialPages are skipped: the file is cut there. When
// a page comes twice the first record is the one to restore.
func (jr *JournalReader) Next() (Record, error) {
	for !jr.done {
		if jr.left <= 0 {
			if err := jr.nextSegment(); err != nil {
				return Record{}, err
			}
			continue
		}
		rec, ok, err := jr.readRecord()
		if err != nil {
			return Record{}, err
		}
		if !ok {
			jr.done = true
			break
		}
		jr.left--
		jr.off += jr.first.RecordSize()
		if rec.Pgno <= jr.first.InitialPages {
			return rec, nil
		}
	}
	return Record{}, io.EOF
}

// readRecord reads the record at jr.off; false when there is none that counts.
func (jr *JournalReader) readRecord() (Record, bool, error) {
	if jr.off+int64(len(jr.buf)) > jr.size {
		return Record{}, false, nil
	}
	if n, err := jr.r.ReadAt(jr.buf, jr.off); n < len(jr.buf) {
		if errors.Is(err, io.EOF) {
			return Record{}, false, nil
		}
		return Record{}, false, fmt.Errorf("read journal record at %d: %w", jr.off, err)
	}
	end := 4 + jr.first.PageSize
	rec := Record{Pgno: binary.BigEndian.Uint32(jr.buf), Page: jr.buf[4:end]}
	if rec.Pgno == 0 || rec.Pgno == LockPgno(jr.first.PageSize) {
		return Record{}, false, nil // the super-journal's name is stored under the lock page
	}
	ok := binary.BigEndian.Uint32(jr.buf[end:]) == jr.segment.RecordCksum(rec.Page)
	return rec, ok, nil
}

// nextSegment looks for a header at the next sector. Page and sector size of the
// segments after the first are not read by SQLite, so they are not checked.
func (jr *JournalReader) nextSegment() error {
	off := jr.first.alignSector(jr.off)
	if off+int64(jr.first.SectorSize) > jr.size {
		jr.done = true
		return nil
	}
	var b [JournalHeaderSize]byte
	if n, err := jr.r.ReadAt(b[:], off); n < len(b) {
		if errors.Is(err, io.EOF) {
			jr.done = true
			return nil
		}
		return fmt.Errorf("read journal header at %d: %w", off, err)
	}
	if string(b[:8]) != JournalMagic {
		jr.done = true
		return nil
	}
	jr.enter(JournalHeader{
		Records: binary.BigEndian.Uint32(b[8:]),
		Nonce:   binary.BigEndian.Uint32(b[12:]),
	}, off)
	return nil
}
